"""The record of each task, in Redis: one hash per job, read by the API, written by API and workers.

    queued -> running -> done | failed | parked

`parked` is a task during which workers died too often; it stays until somebody retries it. docs/architecture.md names
who moves a task from state to state.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.client import Pipeline

from backend.queue.connection import load_script, text
from backend.queue.keys import CONFIG, CONFIGS, NAMES, TASK, TASKS
from integration.label_studio.tasks import Prediction

QUEUED, RUNNING, DONE, FAILED, PARKED = "queued", "running", "done", "failed", "parked"
FINAL = frozenset({DONE, FAILED, PARKED})
# A task may wait in the queue this long, in s, before its record goes.
QUEUED_TTL_S = 24 * 3600
# The index keeps this many of the newest tasks for /jobs.
INDEX_SIZE = 20_000
# The label configs of waiting tasks are stored once: the one of LVIS takes 60 kB, and a request has 5,000 tasks.
# Renewed whenever tasks with it are queued. Longer than any task waits, but for deferred ones without any worker.
CONFIG_TTL_S = 8 * 24 * 3600
# Any request may bring a label config: together they take a quarter of the queue server's memory at most.
MOST_CONFIGS = 1000
# Label configs that a worker caches, the last used.
CACHE_SIZE = 16
# Fields of a record that pages show.
SHOWN = (
    "state",
    "project",
    "task",
    "model_version",
    "queued_at",
    "started_at",
    "finished_at",
    "attempts",
    "worker",
    "request",
    "objects",
    "regions",
    "seconds",
    "error",
    "hint",
    "delivery",
    "interactive",
)


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """The outcome of a task: a prediction for Label Studio, or an error with its hint."""

    prediction: Prediction | None = None
    error: str = ""
    hint: str = ""
    size: int = 0  # bytes of the prediction's JSON, where it was read


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """A task that has ended."""

    outcome: JobOutcome
    facts: Mapping[str, float]


class JobStore:
    """All task records behind one connection."""

    def __init__(self, connection: Redis, *, result_ttl_s: int) -> None:
        self.connection = connection
        self.result_ttl_s = result_ttl_s
        self._look = load_script(connection, "look")
        self._recent = load_script(connection, "recent")
        self._finish_one = load_script(connection, "finish")

    def look(self, job_ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Ids of tasks that have ended, and of those that are unknown: they must be submitted again."""
        if not job_ids:
            return [], []
        ended_ids, unknown_ids = self._look(keys=list(job_ids), args=[NAMES])
        return [text(job_id) for job_id in ended_ids], [text(job_id) for job_id in unknown_ids]

    def fields(self, job_ids: Sequence[str], *names: str) -> dict[str, tuple[str, ...]]:
        """These fields of each record, "" for a missing one."""
        rows = self._read(job_ids, names)
        return {job_id: tuple(map(text, row)) for job_id, row in zip(job_ids, rows, strict=True)}

    def outcomes(self, job_ids: Sequence[str]) -> dict[str, JobOutcome]:
        """Outcomes of those of the given tasks that have ended."""
        rows = self._read(job_ids, ("state", "prediction", "error", "hint"))
        outcomes = {}
        for job_id, (state, prediction, error, hint) in zip(job_ids, rows, strict=True):
            if text(state) == DONE and prediction is not None:
                outcomes[job_id] = JobOutcome(prediction=json.loads(prediction), size=len(prediction))
            elif text(state) in FINAL:
                outcomes[job_id] = JobOutcome(error=text(error) or "unknown failure", hint=text(hint))
        return outcomes

    def finish_all(
        self, finished_jobs: Mapping[str, FinishedJob], add_commands: Callable[[Pipeline], object] = lambda _: None
    ) -> None:
        """Store the outcomes of a batch and wake the requests that wait for them, in one round trip.

        Args:
            add_commands: adds more commands to the same round trip.
        """
        with self.connection.pipeline() as pipe:
            for job_id, job in finished_jobs.items():
                self._finish(pipe, job_id, job)
            add_commands(pipe)
            pipe.execute()

    def _finish(self, pipe: Pipeline, job_id: str, job: FinishedJob) -> None:
        outcome = job.outcome
        is_done = outcome.prediction is not None
        fields: dict[str, Any] = {"finished_at": time.time(), "error": outcome.error, "hint": outcome.hint, **job.facts}
        if is_done:
            fields["prediction"] = json.dumps(outcome.prediction, allow_nan=False)
        # Images inside tasks are large, and nobody runs a finished task again, so its payload is deleted.
        args: list[Any] = [NAMES, job_id, DONE if is_done else FAILED, self.result_ttl_s, int(is_done)]
        pairs: list[Any] = [item for pair in fields.items() for item in pair]
        self._finish_one(keys=[TASK + job_id], args=[*args, *pairs], client=pipe)

    def recent(self, limit: int, lanes: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The newest records, newest first, without their predictions.

        Args:
            lanes: keys of the lists of waiting ids, in the order in which they are served; with them each task that
                waits has a `position`: how many are before it.
        """
        answer: Any = self._recent(keys=[TASKS, *lanes], args=[NAMES, limit, *SHOWN])
        return [
            {
                "job": job_id,
                **({"position": position} if position is not False and values[0] == QUEUED else {}),
                **{name: value for name, value in zip(SHOWN, values, strict=True) if value},
            }
            for job_id, position, *values in json.loads(answer)
        ]

    def _read(self, job_ids: Sequence[str], names: Sequence[str]) -> list[Any]:
        with self.connection.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(TASK + job_id, names)
            return list(pipe.execute())


@functools.lru_cache(maxsize=CACHE_SIZE)
def config_digest(xml: str) -> str:
    """The digest by which a job names its label config."""
    return hashlib.sha256(xml.encode(errors="surrogatepass")).hexdigest()[:32]


class LabelConfigs:
    """Label configs behind one connection."""

    def __init__(self, connection: Redis) -> None:
        self.connection = connection
        self._store = load_script(connection, "store_config")
        self._cache: OrderedDict[str, str] = OrderedDict()

    def store(self, configs: Iterable[str], pipe: Pipeline) -> None:
        """Add commands to a round trip that store the label configs of tasks that are being queued."""
        for xml in set(configs):
            digest = config_digest(xml)
            options: list[str | float] = [CONFIG, digest, xml, time.time(), CONFIG_TTL_S, MOST_CONFIGS]
            self._store(keys=[CONFIG + digest, CONFIGS], args=options, client=pipe)

    def read(self, digest: str) -> str:
        """The XML of a digest; "" when the queue server no longer has it."""
        xml = self._cache.pop(digest, "") or text(self.connection.get(CONFIG + digest))
        if xml:
            self._cache[digest] = xml
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return xml
