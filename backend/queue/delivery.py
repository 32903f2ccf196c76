"""Deliver each finished prediction to Label Studio once, however many requests ask for it.

Label Studio stores every answer it gets, without a lock: three people who open one task at the same moment would get
three equal predictions. So a request *claims* its tasks. It answers with results only while it holds all claims; else,
or when the deadline passes first, it answers `{"results": []}` and its tasks are *deferred*: pushed later through the
bulk import, once, by a worker. A deferral ends only when the task is delivered, so no prediction is lost when a request
dies with its claims.

A request for one task takes the claim over from one for many: somebody is looking at that task.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis import Redis

from backend.queue.connection import load_script, text
from backend.queue.job_store import QUEUED_TTL_S
from backend.queue.keys import CLAIM, DEFERRED, NAMES, PUSHING, repredict_key

# After a push, requests that Label Studio prepared before it could see the pushed predictions are still on their way.
SETTLE_MS = 5000


@dataclass(frozen=True)
class DeliveryClaim:
    """The tasks that one request claims to deliver.

    Attributes:
        token: "<request>:<s to live>:<number of tasks>", the value of the claims in Redis.
        job_ids: the tasks; some may be, or come to be, held by other requests.
    """

    token: str = ""
    job_ids: tuple[str, ...] = ()


class DeferredTasks(NamedTuple):
    """The deferred tasks of a project.

    Attributes:
        done_ids: tasks with a prediction.
        failed_ids: tasks that ended without one, or that the queue server does not know.
    """

    project: str
    done_ids: list[str]
    failed_ids: list[str]
    unfinished_count: int


class DeliveryClaims:
    """Claims and deferred tasks behind one connection."""

    def __init__(self, connection: Redis) -> None:
        self.connection = connection
        self._claim = load_script(connection, "claim")
        self._release = load_script(connection, "release")
        self._defer = load_script(connection, "defer")
        self._take = load_script(connection, "take_deferred")
        self._end_push = load_script(connection, "end_push")
        self._give_back = load_script(connection, "give_back")
        self._survey = load_script(connection, "survey_deferred")
        # By task: its claim, and when this process first saw it (time.monotonic()).
        self._claims_seen: dict[str, tuple[str, float]] = {}

    def claim(self, request_id: str, job_ids: Sequence[str], *, lifetime_s: float) -> DeliveryClaim:
        """Claim what is free; a claim ends by itself after `lifetime_s` should this process die."""
        claim = DeliveryClaim(f"{request_id}:{math.ceil(lifetime_s)}:{len(job_ids)}", tuple(job_ids))
        if job_ids:
            self._claim(keys=list(job_ids), args=[NAMES, claim.token, len(job_ids), int(lifetime_s * 1000)])
        return claim

    def release_if_all_held(self, claim: DeliveryClaim, job_ids: Sequence[str], *, keep_s: int = QUEUED_TTL_S) -> bool:
        """Release the claims before answering with results: True, and nothing is pushed, if all are still ours."""
        if not claim.job_ids or not job_ids:
            return True
        return all(self._release(keys=list(job_ids), args=[NAMES, claim.token, 1, keep_s]))

    def defer(self, claim: DeliveryClaim, facts: dict[str, dict[str, Any]]) -> list[str]:
        """Leave tasks to the pusher instead of answering them, except those that were delivered meanwhile.

        Returns:
            Ids of tasks that the queue server does not know: nobody will deliver them.
        """
        ids = list(facts)
        if not ids or not claim.job_ids:
            return []
        now = time.time()
        entries = [json.dumps({**facts[job_id], "since": now}) for job_id in ids]
        answers = self._defer(keys=ids, args=[NAMES, claim.token, *entries])
        return [job_id for job_id, answer in zip(ids, answers, strict=True) if answer < 0]

    def count_deferred(self) -> int:
        """How many tasks wait to be pushed."""
        return int(self.connection.hlen(DEFERRED))

    def abandon(self, claim: DeliveryClaim) -> None:
        """Release the claims that are still ours; deferred tasks stay deferred."""
        if claim.job_ids:
            self._release(keys=list(claim.job_ids), args=[NAMES, claim.token, 0, 0])

    def is_claimed(self, job_id: str) -> bool:
        return bool(self.connection.exists(CLAIM + job_id))

    def deferred_of(self, job_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Entries of those of these tasks that wait to be pushed: project, task, since, and the pusher's notes."""
        entries: Any = self.connection.hmget(DEFERRED, list(job_ids)) if job_ids else []
        return {job_id: json.loads(entry) for job_id, entry in zip(job_ids, entries, strict=True) if entry}

    def survey(self) -> list[DeferredTasks]:
        """Deferred tasks by project, in one round trip: workers ask often, for thousands of tasks."""
        rows = json.loads(self._survey(keys=[DEFERRED], args=[NAMES]))
        return sorted(
            DeferredTasks(project, list(done_ids), list(failed_ids), unfinished_count)
            for project, done_ids, failed_ids, unfinished_count in rows
        )

    def take(self, job_ids: Sequence[str], limit: int) -> list[str]:
        """Take tasks that may be pushed now; nobody else delivers them until `pushed` or `give_back`."""
        taken_ids = self._take(keys=[DEFERRED, PUSHING], args=[NAMES, limit, *job_ids]) if job_ids else []
        return [text(job_id) for job_id in taken_ids]

    def end_overdue_claims(self, job_ids: Sequence[str]) -> None:
        """End claims that are overdue by this process's clock; the queue server's clock may have been set back."""
        values: Any = self.connection.mget([CLAIM + job_id for job_id in job_ids]) if job_ids else []
        now = time.monotonic()
        for job_id, token in zip(job_ids, map(text, values), strict=True):
            earlier_token, since = self._claims_seen.pop(job_id, ("", now))
            if not token:
                continue
            if token != earlier_token:
                since = now
            if now - since > float(token.split(":")[-2]):
                self._release(keys=[job_id], args=[NAMES, token, 0, 0])
            else:
                self._claims_seen[job_id] = (token, since)

    def being_pushed(self) -> set[str]:
        """Ids of tasks that some pusher has taken."""
        return {text(member) for member in self.connection.smembers(PUSHING)}

    def pushed(self, job_ids: Sequence[str], *, keep_s: int) -> None:
        """Note that Label Studio has stored the tasks' predictions; their records live `keep_s` from now on."""
        if job_ids:
            self._end_push(keys=list(job_ids), args=[NAMES, "pushed", SETTLE_MS, keep_s])

    def give_back(self, job_ids: Sequence[str], *, uncertain: bool) -> None:
        """Put tasks back after a failed push. `uncertain`: Label Studio may have stored them all the same."""
        if job_ids:
            self._give_back(keys=[DEFERRED, PUSHING], args=[int(uncertain), *job_ids])

    def drop(self, job_ids: Sequence[str], *, keep_s: int = QUEUED_TTL_S) -> None:
        """End the deferral of tasks that have nothing to deliver."""
        if job_ids:
            self._end_push(keys=list(job_ids), args=[NAMES, "", 0, keep_s])


def repredicting(connection: Redis, project: str) -> dict[str, Any]:
    """Progress of predicting a project's tasks anew: version, total, left; {} when none are."""
    row = {text(name): text(value) for name, value in connection.hgetall(repredict_key(project)).items()}
    if not row or not int(row["total"]):
        return {}
    entries = map(json.loads, connection.hvals(DEFERRED))
    left_count = sum(str(entry.get("project", "")).partition(".")[0] == project for entry in entries)
    return {"version": row["version"], "total": int(row["total"]), "left": min(left_count, int(row["total"]))}
