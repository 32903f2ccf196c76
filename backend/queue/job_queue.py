"""One job a task: its id, enqueueing it exactly once, waiting for its outcome, and the requests that wait for it.

The id is a hash of everything that the prediction depends on. A request for the same prediction, at the same time or an
hour later, gets the same record and nothing is computed twice. A lane is a list of ids; all else is in the record.

A waiting request registers at its tasks under a name of its own and renews a lease while it waits and its client is
still connected. A task whose requesters are all gone is dropped when a worker takes it, unless it is deferred (it will
be pushed) or nobody ever waited for it (an operator's retry, a prediction after a promotion).

All waiting requests of a process share one subscription that says which tasks have ended: one for each request would
cost a connection each, and every request would read the messages of all others.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import redis
from redis import Redis
from redis.client import PubSub

from backend.queue.connection import load_script, text
from backend.queue.job_store import (
    FINAL,
    INDEX_SIZE,
    QUEUED,
    QUEUED_TTL_S,
    JobOutcome,
    JobStore,
    LabelConfigs,
    config_digest,
)
from backend.queue.keys import (
    FINISHED_CHANNEL,
    INTERACTIVE_LANE,
    LANES,
    NAMES,
    PREDICT_LANE,
    QUEUED_CHANNEL,
    REQUESTER,
    TASK,
    TASKS,
)
from backend.settings import Settings

log = logging.getLogger(__name__)
# The first request waits this long, in s, for the subscription; messages before it are found by later rechecks.
LISTENING_S = 0.5
LOOK_UP_S = 1.0
RECONNECT_S = 0.2


class Subscription:
    """Ids of ended tasks that one request has received and not yet read."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ids: set[str] = set()

    def add(self, job_id: str) -> None:
        with self._changed:
            self._ids.add(job_id)
            self._changed.notify()

    def take(self, timeout_s: float) -> set[str]:
        """Ids of tasks that have ended, waiting up to `timeout_s` for the first."""
        with self._changed:
            if not self._ids:
                self._changed.wait(max(timeout_s, 0.0))
            ended_ids, self._ids = self._ids, set()
        return ended_ids


class CompletionListener:
    """Receives the ids of ended tasks for all waiting requests, in a thread that starts with the first of them."""

    def __init__(self, connection: Redis) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Subscription]] = {}
        self._listening = threading.Event()
        self._is_begun = self._is_closed = False

    @contextlib.contextmanager
    def about(self, job_ids: Collection[str]) -> Iterator[Subscription]:
        """Receive the ends of these tasks inside the `with` block, from just before it begins."""
        arrivals = Subscription()
        with self._lock:
            for job_id in job_ids:
                self._waiting.setdefault(job_id, []).append(arrivals)
            if not self._is_begun:
                self._is_begun = True
                threading.Thread(target=self._run, name="finished news", daemon=True).start()
        self._listening.wait(LISTENING_S)
        try:
            yield arrivals
        finally:
            with self._lock:
                for job_id in job_ids:
                    self._waiting[job_id].remove(arrivals)
                    if not self._waiting[job_id]:
                        del self._waiting[job_id]

    def close(self) -> None:
        """Stop listening; call it before the connections of this process are closed."""
        self._is_closed = True

    def _run(self) -> None:
        while not self._is_closed:
            try:
                with self.connection.pubsub() as news:
                    news.subscribe(FINISHED_CHANNEL)
                    self._listen(news)
            except redis.RedisError as error:
                self._listening.clear()
                log.debug("the queue server does not answer: %s", error)
                time.sleep(RECONNECT_S)
            except (OSError, ValueError):
                if not self._is_closed:
                    raise

    def _listen(self, news: PubSub) -> None:
        while not self._is_closed:
            message = news.get_message(timeout=LOOK_UP_S)
            if message is not None and message["type"] == "subscribe":
                self._listening.set()
            elif message is not None and message["type"] == "message":
                self._say(text(message["data"]))

    def _say(self, job_id: str) -> None:
        with self._lock:
            waiting = list(self._waiting.get(job_id, ()))
        for arrivals in waiting:
            arrivals.add(job_id)


# Tasks submitted to the queue server in one round trip, so that a request of many takes little memory.
CHUNK = 500
# While waiting, everything is looked at again this often, in s, in case a wake-up call was lost.
RECHECK_S = 1.0
# A lease outlives its last renewal by this, in s: renewals come every second, a busy API process may be late.
LEASE_S = 10.0
# Answers are collected up to this many bytes of JSON; tasks beyond it count as not ready and are deferred.
MOST_ANSWER_BYTES = 32 * 2**20
ANSWER_CHUNK = 50
CANCELLED = "Cancelled before a worker took it."
CANCELLED_HINT = "Open the task in Label Studio or retrieve its predictions again."


@dataclass(frozen=True)
class Requester:
    """A waiting request.

    Attributes:
        token: its name in Redis; "" for a caller that does not wait for its tasks.
        is_gone: whether its client has disconnected.
    """

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    is_gone: Callable[[], bool] = lambda: False


NO_REQUESTER = Requester("")


@dataclass(frozen=True)
class PredictionJob:
    """Everything a worker needs to predict one task; travels through the queue as JSON, without any secret.

    Attributes:
        project: Label Studio's "<id>.<created>", or "" for other clients.
        image: the value of the task's image key, for the hash; a hash itself where the image is inside the task.
        request_id: of the request that asked first; for logs, not part of the identity.
        prompt: the annotator's box or click (`integration.label_studio.prompts.PromptFields`); None for a whole image.
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
        """Letters, digits and - only; project and task in front for people who read it."""
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
        """The job as it is queued: with the digest of the label config (`backend.queue.job_store`)."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "label_config": config_digest(self.label_config),
        }


class JobQueue:
    """Both lanes of the queue, with the records of all tasks."""

    def __init__(self, connection: Redis, settings: Settings) -> None:
        self.connection = connection
        self.settings = settings
        self.is_stopping = False
        self.records = JobStore(connection, result_ttl_s=settings.result_ttl_s)
        self.configs = LabelConfigs(connection)
        self.news = CompletionListener(connection)
        self._submit = load_script(connection, "submit")
        self._retry = load_script(connection, "retry")
        self._cancel = load_script(connection, "cancel")

    def submit(
        self, jobs: Sequence[PredictionJob], *, interactive: bool = False, requester: Requester = NO_REQUESTER
    ) -> dict[str, str]:
        """Enqueue the jobs that are not queued yet; interactive ones overtake. States by job id."""
        distinct = list({job.id: job for job in jobs}.values())
        answers: dict[str, str] = {}
        for start in range(0, len(distinct), CHUNK):
            answers |= self._enqueue(distinct[start : start + CHUNK], interactive, requester)
        if interactive:
            self._promote(job_id for job_id, answer in answers.items() if answer == QUEUED)
        return answers

    def stop(self) -> None:
        """Make all waiting requests answer at once: the process was asked to end."""
        self.is_stopping = True

    def announce(self) -> None:
        """Wake the workers that wait for work."""
        self.connection.publish(QUEUED_CHANNEL, "")

    def _enqueue(self, jobs: Sequence[PredictionJob], is_interactive: bool, requester: Requester) -> dict[str, str]:
        """Enqueue jobs in one atomic step; see submit.lua."""
        args: list[Any] = [NAMES, time.time(), QUEUED_TTL_S, INDEX_SIZE, requester.token, int(LEASE_S * 1000)]
        for job in jobs:
            task, payload = str(job.task.get("id", "")), json.dumps(job.payload())
            args += [job.id, job.project, task, job.model_version, job.request_id, int(is_interactive), payload]
        with self.connection.pipeline() as pipe:
            self.configs.store((job.label_config for job in jobs), pipe)
            self._submit(keys=[INTERACTIVE_LANE if is_interactive else PREDICT_LANE, TASKS], args=args, client=pipe)
            *_, answers = pipe.execute()
        return {job.id: text(answer) for job, answer in zip(jobs, answers, strict=True)}

    def job_of(self, payload: dict[str, Any]) -> PredictionJob:
        """The job of a record; its label config is "" when the queue server has forgotten it."""
        return PredictionJob(**{**payload, "label_config": self.configs.read(payload["label_config"])})

    def stay(self, requester: Requester, lease_s: float = LEASE_S) -> None:
        """Renew the lease of a request; tasks whose leases have all ended are dropped when a worker takes them."""
        if requester.token:
            self.connection.set(REQUESTER + requester.token, "1", px=int(lease_s * 1000))

    def leave(self, requester: Requester) -> None:
        """End the lease of a request that waits no more."""
        if requester.token:
            self.connection.delete(REQUESTER + requester.token)

    def ask(
        self,
        jobs: Sequence[PredictionJob],
        *,
        until: float,
        interactive: bool = False,
        requester: Requester = NO_REQUESTER,
    ) -> dict[str, JobOutcome]:
        """Submit jobs and wait: outcomes by job id of those that ended before `until` (time.monotonic()).

        Also returns when this process stops, or the client of `requester` has gone away.

        Jobs that the queue server lost in a restart are submitted again.
        """
        by_id = {job.id: job for job in jobs}
        # Listening begins first, so that only tasks that had ended before need a look-up.
        with self.news.about(by_id) as arrivals:
            answers = self.submit(jobs, interactive=interactive, requester=requester)
            outcomes: dict[str, JobOutcome] = {}
            self._add(outcomes, [job_id for job_id, answer in answers.items() if answer in FINAL])
            recheck_at = time.monotonic() + RECHECK_S
            while len(outcomes) < len(by_id) and self._may_wait(outcomes, until, requester):
                now = time.monotonic()
                try:
                    if now >= recheck_at:
                        self.stay(requester)
                        ended_ids, unknown_ids = self.records.look(
                            [job_id for job_id in by_id if job_id not in outcomes]
                        )
                        self.submit([by_id[job_id] for job_id in unknown_ids], requester=requester)
                        self._add(outcomes, ended_ids)
                        recheck_at = now + RECHECK_S
                    elif arrived_ids := arrivals.take(min(until, recheck_at) - now) - outcomes.keys():
                        self._add(outcomes, sorted(arrived_ids))
                except redis.RedisError:
                    recheck_at = 0.0
                    time.sleep(min(0.2, max(0.0, until - time.monotonic())))
        return outcomes

    def _add(self, outcomes: dict[str, JobOutcome], job_ids: Sequence[str]) -> None:
        """Read the outcomes of tasks, up to `MOST_ANSWER_BYTES`."""
        for start in range(0, len(job_ids), ANSWER_CHUNK):
            if _size(outcomes) >= MOST_ANSWER_BYTES:
                return
            outcomes.update(self.records.outcomes(job_ids[start : start + ANSWER_CHUNK]))

    def _may_wait(self, outcomes: dict[str, JobOutcome], until: float, requester: Requester) -> bool:
        may_go_on = time.monotonic() < until and not self.is_stopping and not requester.is_gone()
        return may_go_on and _size(outcomes) < MOST_ANSWER_BYTES

    def _promote(self, job_ids: Iterable[str]) -> None:
        """Move waiting jobs into the interactive lane; workers skip those that were taken in the meantime."""
        with self.connection.pipeline() as pipe:
            for job_id in job_ids:
                pipe.lrem(PREDICT_LANE, 1, job_id)
                pipe.lrem(INTERACTIVE_LANE, 1, job_id)
                pipe.lpush(INTERACTIVE_LANE, job_id)
            pipe.execute()

    def depth(self) -> dict[str, int]:
        """Waiting jobs of each lane."""
        interactive, predict = (int(self.connection.llen(lane)) for lane in LANES)
        return {"interactive": interactive, "predict": predict}

    def waiting(self) -> list[str]:
        """Ids of the waiting jobs, in the order in which they are served."""
        return [text(member) for lane in LANES for member in self.connection.lrange(lane, 0, -1)]

    def recent(self, limit: int) -> list[dict[str, Any]]:
        """The newest records, newest first, with the `position` of those that wait."""
        return self.records.recent(limit, LANES)

    def retry(self, job_id: str) -> bool:
        """Run a failed or parked task again; False for any other, and when there is no payload left of it."""
        if not self._retry(keys=[TASK + job_id, PREDICT_LANE], args=[NAMES, job_id, time.time(), QUEUED_TTL_S]):
            return False
        self.announce()
        return True

    def cancel(self, *, project: str = "", job_id: str = "") -> int:
        """End waiting tasks as failed, so that their requests are answered and nothing is pushed later; their number.

        Tasks that a worker has begun go on to their end.

        Args:
            project: Label Studio's id of the project, "" for all. job_id: only this one.
        """
        waiting_ids = [waiting_id for waiting_id in self.waiting() if job_id in ("", waiting_id)]
        if project:
            keys = self.records.fields(waiting_ids, "project")
            waiting_ids = [waiting_id for waiting_id in waiting_ids if keys[waiting_id][0].partition(".")[0] == project]
        if not waiting_ids:
            return 0
        options: list[Any] = [NAMES, CANCELLED, CANCELLED_HINT, time.time(), self.settings.result_ttl_s]
        return len(self._cancel(keys=LANES, args=[*options, *waiting_ids]))


def _size(outcomes: dict[str, JobOutcome]) -> int:
    return sum(outcome.size for outcome in outcomes.values())
