"""One RQ job a task: its id, enqueueing it exactly once, and waiting for what it brings.

The id is a hash of everything that the prediction depends on. Whoever asks for the same thing, at the same time or an
hour later, meets the same record and nothing is computed twice. What the worker needs stands in that record, too: RQ
would compress a job's arguments at enqueueing and once more at its end, which for an image inside the task took longer
than all else that the queue does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import redis
from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.serializers import JSONSerializer

from backend.queue.completion import CompletionListener, Subscription
from backend.queue.job_store import FAILED, FINAL, QUEUED, QUEUED_TTL_S, JobOutcome, JobStore
from backend.queue.keys import QUEUED_CHANNEL, task_key
from backend.queue.label_configs import LabelConfigs, config_digest
from backend.queue.leases import LEASE_S, NO_REQUESTER, Requester, RequestLeases
from backend.queue.lua import load_script
from backend.settings import Settings

INTERACTIVE_QUEUE = "transfiner-interactive"
PREDICT_QUEUE = "transfiner-predict"
# By name, so that the API can enqueue it without importing torch.
TASK_FUNCTION = "backend.worker.task_runner.predict_task"
# Tasks described to the queue server in one round trip, so that a request of many takes little memory.
CHUNK = 500
# While waiting, everything is looked at again this often, in s, in case a wake-up call was lost.
RECHECK_S = 1.0


@dataclass(frozen=True)
class PredictionJob:
    """Everything a worker needs to predict one task; travels through the queue as JSON, without any secret.

    Attributes:
        project: Label Studio's "<id>.<created>", or "" for other clients.
        task: {"id": ..., "data": {...}} of the task.
        image: the value of the task's image key, for the hash; a hash itself where the image is inside the task.
        label_config: XML of the project.
        model_version: the version that the answer will carry.
        output: fields of integration.regions.write.Output.
        request_id: of the request that asked first; for logs, not part of the identity.
        prompt: what an annotator points at (`backend.predictions.prompts.PromptFields`); None for a whole image.
    """

    project: str
    task: dict[str, Any]
    image: str
    label_config: str
    model_version: str
    output: dict[str, Any] = field(default_factory=dict)
    request_id: str = ""
    prompt: dict[str, Any] | None = None

    @functools.cached_property
    def id(self) -> str:
        """Letters, digits, _ and - only, as RQ demands; project and task in front for people who read it."""
        parts = (
            self.project,
            self.task.get("id"),
            self.image,
            self.model_version,
            config_digest(self.label_config),
            self.output,
            *([self.prompt] if self.prompt else []),
        )
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
        project = re.sub(r"[^A-Za-z0-9]", "", self.project.partition(".")[0])[:20] or "none"
        task = re.sub(r"[^A-Za-z0-9]", "", str(self.task.get("id", "")))[:20] or "none"
        return f"p{project}-t{task}-{digest}"

    def payload(self) -> dict[str, Any]:
        """As it lies in the queue: the label config by its digest (`backend.queue.label_configs`)."""
        return {
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "label_config": config_digest(self.label_config),
        }


class JobQueue:
    """Both lanes of the queue with the records of what went through them."""

    def __init__(self, connection: Redis, settings: Settings) -> None:
        self.connection = connection
        self.settings = settings
        # Set by the server: whoever waits answers at once when the process is asked to end.
        self.is_stopping: Callable[[], bool] = lambda: False
        self.records = JobStore(connection, result_ttl_s=settings.result_ttl_s)
        self.wanted = RequestLeases(connection)
        self.configs = LabelConfigs(connection)
        self.news = CompletionListener(connection)
        self._retry = load_script(connection, "retry")
        self.predict = Queue(PREDICT_QUEUE, connection=connection, serializer=JSONSerializer)
        self.interactive = Queue(INTERACTIVE_QUEUE, connection=connection, serializer=JSONSerializer)

    def submit(
        self, jobs: Sequence[PredictionJob], *, interactive: bool = False, asker: Requester = NO_REQUESTER
    ) -> dict[str, str]:
        """Enqueue those that nobody has asked for yet; interactive ones overtake.

        Args:
            asker: who is going to wait for them; those that no asker waits for any more are dropped.

        Returns:
            By id "new", "again" (enqueued now) or the state that it was found in.
        """
        by_id = {job.id: job for job in jobs}
        ids = list(by_id)
        answers = dict(zip(ids, self.records.reserve(ids, asker.token, LEASE_S), strict=True))
        fresh = [job_id for job_id, answer in answers.items() if answer in ("new", "again")]
        for job_id in (job_id for job_id in fresh if answers[job_id] == "again"):
            self._unlist_failed(job_id)
        lane = self.interactive if interactive else self.predict
        for start in range(0, len(fresh), CHUNK):
            self._enqueue({job_id: by_id[job_id] for job_id in fresh[start : start + CHUNK]}, lane)
        if interactive:
            self._promote(job_id for job_id, answer in answers.items() if answer == QUEUED)
        return answers

    def announce(self) -> None:
        """Wake the workers that wait for work."""
        self.connection.publish(QUEUED_CHANNEL, "")

    def _enqueue(self, jobs: dict[str, PredictionJob], lane: Queue) -> None:
        prepared = [
            Queue.prepare_data(
                TASK_FUNCTION,
                job_id=job_id,
                timeout=self.settings.batch_timeout_s,
                result_ttl=self.settings.result_ttl_s,
                failure_ttl=self.settings.result_ttl_s,
                description=f"predict task {job.task.get('id')} of project {job.project}",
            )
            for job_id, job in jobs.items()
        ]

        def also(pipe: Pipeline) -> None:
            self.configs.store((job.label_config for job in jobs.values()), pipe)
            lane.enqueue_many(prepared, pipeline=pipe)
            pipe.publish(QUEUED_CHANNEL, "")

        is_interactive = lane is self.interactive
        self.records.describe({job_id: _facts(job, is_interactive) for job_id, job in jobs.items()}, also)

    def job_of(self, payload: dict[str, Any]) -> PredictionJob:
        """The job of a record; its label config is "" when the queue server has forgotten it."""
        return PredictionJob(**{**payload, "label_config": self.configs.read(payload["label_config"])})

    def _unlist_failed(self, job_id: str) -> None:
        self.predict.failed_job_registry.remove(job_id)
        self.interactive.failed_job_registry.remove(job_id)

    def ask(
        self, jobs: Sequence[PredictionJob], *, until: float, interactive: bool = False, asker: Requester = NO_REQUESTER
    ) -> dict[str, JobOutcome]:
        """Submit, and wait: outcomes by job id of those that ended before `until` (time.monotonic()).

        Also ends when this process stops, or the client of `asker` has gone away.

        Survives a queue server that restarts and forgets everything: lost jobs are submitted again.
        """
        by_id = {job.id: job for job in jobs}
        # Listening begins first, so that only what had ended before has to be looked up.
        with self.news.about(by_id) as arrivals:
            answers = self.submit(jobs, interactive=interactive, asker=asker)
            ended = self.records.outcomes([job_id for job_id, answer in answers.items() if answer in FINAL])
            recheck_at = time.monotonic() + RECHECK_S
            while len(ended) < len(by_id) and self._may_wait(until, asker):
                try:
                    self._collect(by_id, ended, arrivals, until, asker, recheck_at)
                except redis.RedisError:
                    recheck_at = 0.0
                    time.sleep(min(0.2, max(0.0, until - time.monotonic())))
        return ended

    def _collect(
        self,
        by_id: dict[str, PredictionJob],
        ended: dict[str, JobOutcome],
        arrivals: Subscription,
        until: float,
        asker: Requester,
        recheck_at: float,
    ) -> None:
        while len(ended) < len(by_id) and self._may_wait(until, asker):
            now = time.monotonic()
            if now >= recheck_at:
                self.wanted.stay(asker)
                pending = [job_id for job_id in by_id if job_id not in ended]
                self._resubmit_lost([by_id[job_id] for job_id in pending], asker)
                ended.update(self.records.outcomes(pending))
                recheck_at = now + RECHECK_S
            else:
                if woken := arrivals.take(min(until, recheck_at) - now) - ended.keys():
                    ended.update(self.records.outcomes(sorted(woken)))

    def _may_wait(self, until: float, asker: Requester) -> bool:
        return time.monotonic() < until and not self.is_stopping() and not asker.is_gone()

    def _resubmit_lost(self, jobs: Sequence[PredictionJob], asker: Requester) -> None:
        unknown = self.records.unknown([job.id for job in jobs])
        if unknown:
            self.submit([job for job in jobs if job.id in unknown], asker=asker)

    def _promote(self, job_ids: Iterable[str]) -> None:
        """Move waiting jobs into the fast lane; workers leave out what was taken in the meantime."""
        with self.connection.pipeline() as pipe:
            for job_id in job_ids:
                pipe.lrem(self.predict.key, 1, job_id)
                pipe.lrem(self.interactive.key, 1, job_id)
                pipe.lpush(self.interactive.key, job_id)
            pipe.execute()

    def depth(self) -> dict[str, int]:
        """Waiting jobs of each lane."""
        return {"interactive": len(self.interactive), "predict": len(self.predict)}

    def recent(self, limit: int) -> list[dict[str, Any]]:
        """The newest records, newest first, with the `position` of those that wait."""
        return self.records.recent(limit, (self.interactive.key, self.predict.key))

    def retry(self, job_id: str) -> bool:
        """Run a failed or parked task again; False for any other, and when there is no payload left of it."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,200}", job_id):
            # RQ raises for such an id.
            return False
        if not self._retry(keys=[task_key(job_id), self.predict.key], args=[job_id, time.time(), QUEUED_TTL_S]):
            return False
        self._unlist_failed(job_id)
        self.announce()
        return True


def _facts(job: PredictionJob, interactive: bool) -> dict[str, Any]:
    return {
        "project": job.project,
        "task": str(job.task.get("id", "")),
        "model_version": job.model_version,
        "request": job.request_id,
        "interactive": interactive,
        "payload": job.payload(),
    }


__all__ = ["FAILED", "INTERACTIVE_QUEUE", "PREDICT_QUEUE", "JobQueue", "PredictionJob"]
