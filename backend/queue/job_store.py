"""What is known about each task, in Redis: one hash per job, read by the API, written by API and workers.

    queued -> running -> done | failed | parked

`parked` is a task that killed its worker too often; it stays until somebody retries it. Nothing here is worth a backup:
Label Studio asks again for whatever is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.client import Pipeline

from backend.queue.connection import text

QUEUED, RUNNING, DONE, FAILED, PARKED = "queued", "running", "done", "failed", "parked"
FINAL = frozenset({DONE, FAILED, PARKED})
INDEX = "transfiner:tasks"
STATS = "transfiner:stats"
# Workers say the job id here when a task has ended, so that waiting requests wake at once.
FINISHED_CHANNEL = "transfiner:finished"
# A task may wait in the queue this long, in s, before its record goes.
QUEUED_TTL_S = 24 * 3600
# The index keeps this many of the newest tasks for /jobs.
INDEX_SIZE = 20_000

# Per job: "new" when the caller shall enqueue it (unknown, or failed before), else the present state. One round trip,
# atomic: of parallel requests for one task exactly one hears "new". ARGV: prefix of the records, now, s to live, name
# of who waits for it (backend/queue/leases.py) or "", ms of that one's lease.
RESERVE = """
local answers = {}
if ARGV[4] ~= '' then redis.call('SET', 'transfiner:asker:' .. ARGV[4], '1', 'PX', ARGV[5]) end
for i, job in ipairs(KEYS) do
  local key = ARGV[1] .. job
  local state = redis.call('HGET', key, 'state')
  if not state or state == 'failed' then
    redis.call('DEL', key)
    redis.call('HSET', key, 'state', 'queued', 'queued_at', ARGV[2])
    redis.call('EXPIRE', key, ARGV[3])
    answers[i] = state and 'again' or 'new'
  else
    answers[i] = state
  end
  if ARGV[4] ~= '' and state ~= 'done' and state ~= 'parked' then
    redis.call('SADD', 'transfiner:askers:' .. job, ARGV[4])
    redis.call('EXPIRE', 'transfiner:askers:' .. job, ARGV[3])
  end
end
return answers
"""


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a task ended: a prediction for Label Studio, or an error with its hint."""

    prediction: dict[str, Any] | None = None
    error: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """A task that has ended.

    Attributes:
        facts: instances, regions, seconds.
    """

    outcome: JobOutcome
    facts: Mapping[str, float]


def job_key(job_id: str) -> str:
    return f"transfiner:task:{job_id}"


class JobStore:
    """All task records behind one connection."""

    def __init__(self, connection: Redis, *, result_ttl_s: int) -> None:
        self.connection = connection
        self.result_ttl_s = result_ttl_s
        self._reserve = connection.register_script(RESERVE)

    def reserve(self, job_ids: Sequence[str], asker: str = "", lease_s: float = 0.0) -> list[str]:
        """For each id "new" or "again" (the caller must enqueue it) or its present state.

        Args:
            asker: who waits for them, for `lease_s` from now; "": nobody.
        """
        if not job_ids:
            return []
        lease_ms = int(lease_s * 1000)
        answers = self._reserve(keys=list(job_ids), args=[job_key(""), time.time(), QUEUED_TTL_S, asker, lease_ms])
        return [text(answer) for answer in answers]

    def describe(self, facts: dict[str, dict[str, Any]], also: Callable[[Pipeline], object] = lambda _: None) -> None:
        """Add facts (project, task, model_version...) to records and list them; `also` adds to the round trip."""
        now = time.time()
        with self.connection.pipeline() as pipe:
            for job_id, values in facts.items():
                pipe.hset(job_key(job_id), mapping={name: _encode(value) for name, value in values.items()})
                pipe.zadd(INDEX, {job_id: now})
            pipe.zremrangebyrank(INDEX, 0, -INDEX_SIZE - 1)
            also(pipe)
            pipe.execute()

    def states(self, job_ids: Sequence[str]) -> list[str]:
        """State of each, "" for unknown ones."""
        return [text(row[0]) for row in self._read(job_ids, ("state",))]

    def projects(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The project of each, "" for unknown ones."""
        rows = self._read(job_ids, ("project",))
        return {job_id: text(row[0]) for job_id, row in zip(job_ids, rows, strict=True)}

    def outcomes(self, job_ids: Sequence[str]) -> dict[str, JobOutcome]:
        """Those of the given tasks that have ended."""
        rows = self._read(job_ids, ("state", "prediction", "error", "hint"))
        ended = {}
        for job_id, (state, prediction, error, hint) in zip(job_ids, rows, strict=True):
            if text(state) == DONE and prediction is not None:
                ended[job_id] = JobOutcome(prediction=json.loads(prediction))
            elif text(state) in FINAL:
                ended[job_id] = JobOutcome(error=text(error) or "unknown failure", hint=text(hint))
        return ended

    def payload(self, job_id: str) -> dict[str, Any] | None:
        """Fields of a task's PredictionJob; None when nothing is left of them."""
        value: Any = self.connection.hget(job_key(job_id), "payload")
        found: dict[str, Any] | None = json.loads(value) if value else None
        return found

    def finish(self, job_id: str, outcome: JobOutcome, *, state: str = "") -> None:
        """Store how a task ended and wake those who wait for it."""
        with self.connection.pipeline() as pipe:
            self._finish(pipe, job_id, FinishedJob(outcome, {}), state)
            pipe.execute()

    def finish_all(self, ended: Mapping[str, FinishedJob], also: Callable[[Pipeline], object] = lambda _: None) -> None:
        """The same for a batch in one round trip; `also` adds commands that belong to it."""
        with self.connection.pipeline() as pipe:
            for job_id, one in ended.items():
                self._finish(pipe, job_id, one)
            also(pipe)
            pipe.execute()

    def _finish(self, pipe: Pipeline, job_id: str, ended: FinishedJob, state: str = "") -> None:
        outcome = ended.outcome
        state = state or (DONE if outcome.prediction is not None else FAILED)
        values: dict[str, Any] = {
            "state": state,
            "finished_at": time.time(),
            "error": outcome.error,
            "hint": outcome.hint,
            **ended.facts,
        }
        if outcome.prediction is not None:
            values["prediction"] = json.dumps(outcome.prediction, allow_nan=False)
            # Images that came inside the task are large, and nobody runs a finished task again.
            pipe.hdel(job_key(job_id), "payload")
        pipe.hset(job_key(job_id), mapping={name: _encode(value) for name, value in values.items()})
        pipe.expire(job_key(job_id), self.result_ttl_s if state != PARKED else QUEUED_TTL_S)
        pipe.delete(f"transfiner:askers:{job_id}")
        pipe.hincrby(STATS, f"tasks_{state}", 1)
        pipe.publish(FINISHED_CHANNEL, job_id)

    def keep(self, job_ids: Iterable[str]) -> None:
        """Keep records whose predictions Label Studio has not taken yet, though their time is over."""
        with self.connection.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.expire(job_key(job_id), QUEUED_TTL_S)
            pipe.execute()

    def queued(self, limit: int) -> dict[str, float]:
        """Of the newest tasks those that say `queued`, with the time since when."""
        ids = [text(member) for member in self._newest(limit)]
        rows = zip(ids, self._read(ids, ("state", "queued_at")), strict=True)
        return {job_id: float(at or time.time()) for job_id, (state, at) in rows if text(state) == QUEUED}

    def _newest(self, limit: int) -> list[Any]:
        members: Any = self.connection.zrevrange(INDEX, 0, limit - 1)
        return list(members)

    def requeue(self, job_id: str) -> None:
        self.connection.hset(job_key(job_id), "state", QUEUED)

    def forget(self, job_id: str) -> bool:
        """Remove one record (a parked task that is to be retried)."""
        self.connection.zrem(INDEX, job_id)
        return bool(self.connection.delete(job_key(job_id)))

    def recent(self, limit: int) -> list[dict[str, str]]:
        """The newest records, newest first, without their predictions."""
        names: tuple[str, ...] = (  # all but the prediction
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
            "regions",
            "seconds",
            "error",
            "hint",
            "delivery",
            "interactive",
        )
        ids = [text(member) for member in self._newest(limit)]
        rows = zip(ids, self._read(ids, names), strict=True)
        return [
            {"job": job_id, **{name: text(value) for name, value in zip(names, row, strict=True) if value}}
            for job_id, row in rows
            if row[0] is not None
        ]

    def _read(self, job_ids: Sequence[str], names: Sequence[str]) -> list[Any]:
        with self.connection.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(job_key(job_id), names)
            return list(pipe.execute())


def _encode(value: object) -> str | float | int:
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, str | int | float) else json.dumps(value)
