"""Workers' heartbeats, and the tasks of workers whose heartbeat has stopped.

Every worker renews a key that expires within seconds and lists what it is running; the others take over its tasks when
the key is gone or no longer changes. Such a worker is dead, cut off or frozen; the others cannot tell which. So each of
its tasks counts a death, and a worker that comes back takes these deaths back.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from typing import Any

from redis import Redis

from backend.queue import keys
from backend.queue.connection import load_script, text
from backend.queue.job_queue import JobQueue
from backend.queue.job_store import QUEUED_TTL_S

log = logging.getLogger(__name__)


class Heartbeat:
    """The heartbeat of one worker; the name of one for interactive tasks only begins with `INTERACTIVE_NAME`."""

    def __init__(self, connection: Redis, name: str, *, lost_after_s: float) -> None:
        self.connection = connection
        self.name = name
        self.lost_after_s = lost_after_s
        self._beats = itertools.count()

    def beat(self, facts: dict[str, Any]) -> None:
        """Say that the worker lives, with facts for pages; a queue server without memory keeps the facts before."""
        lifetime_ms = int(self.lost_after_s * 1000)
        with self.connection.pipeline(transaction=False) as pipe:
            pipe.pexpire(keys.WORKER + self.name, lifetime_ms)
            pipe.sadd(keys.WORKERS, self.name)
            pipe.set(keys.WORKER + self.name, json.dumps({**facts, "beat": next(self._beats)}), px=lifetime_ms)
            if is_interactive(self.name):
                pipe.set(keys.INTERACTIVE_WORKERS, "1", px=lifetime_ms)
            pipe.execute()

    def leave(self) -> None:
        """End the heartbeat; a worker that still has tasks stays listed, so that others take them over at once."""
        self.connection.delete(keys.WORKER + self.name)
        if is_interactive(self.name):
            # Another interactive worker sets it again with its next heartbeat; until then all take interactive tasks.
            self.connection.delete(keys.INTERACTIVE_WORKERS)
        if not self.connection.exists(keys.RUNNING + self.name):
            self.connection.srem(keys.WORKERS, self.name)


def is_interactive(name: str) -> bool:
    """Whether a worker takes interactive tasks only."""
    return name.startswith(keys.INTERACTIVE_NAME)


def living_workers(connection: Redis) -> dict[str, dict[str, Any]]:
    """Facts of each worker whose heartbeat has not expired."""
    return {name: json.loads(beat) for name, beat in _beats(connection).items() if beat}


def _beats(connection: Redis) -> dict[str, str]:
    """The last heartbeat of each listed worker, "" where it has expired."""
    names = sorted(text(member) for member in connection.smembers(keys.WORKERS))
    beats: Any = connection.mget([keys.WORKER + name for name in names]) if names else []
    return dict(zip(names, map(text, beats), strict=True))


class OrphanSearch:
    """Takes over the tasks of workers whose heartbeat has stopped.

    Either it has expired, or it has not changed for long by this process's monotonic clock: when the queue server's
    clock is set back, heartbeats of dead workers do not expire.
    """

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self._seen: dict[str, tuple[str, float]] = {}

    def run(self) -> list[str]:
        """Put tasks of lost workers back at the front, park those with too many deaths; ids of all of them.

        Any number of processes may do this at any time: all tasks of a worker are taken in one step.
        """
        connection = self.queue.connection
        now = time.monotonic()
        earlier_beats, self._seen = self._seen, {}
        requeued_ids = []
        for name, beat in _beats(connection).items():
            earlier_beat, since = earlier_beats.get(name, ("", now))
            self._seen[name] = (beat, since if beat == earlier_beat else now)
            if not beat or now - self._seen[name][1] > 2 * self.queue.settings.worker_lost_s:
                requeued_ids += _requeue(self.queue, name, is_dead=True, beat=beat)
                if is_interactive(name):
                    connection.delete(keys.INTERACTIVE_WORKERS)
        return requeued_ids


def requeue_jobs_of(queue: JobQueue, name: str) -> list[str]:
    """Requeue tasks that a worker took without learning of it (a lost answer); they count no death. Their ids."""
    return _requeue(queue, name, is_dead=False)


def _requeue(queue: JobQueue, name: str, *, is_dead: bool, beat: str = "") -> list[str]:
    limit = queue.settings.max_attempts
    queued_ids, parked_ids = (
        [text(job_id) for job_id in ids]
        for ids in load_script(queue.connection, "requeue")(
            keys=[keys.RUNNING + name, keys.WORKERS, keys.WORKER + name, keys.TAKEN_FROM + name, keys.PREDICT_LANE],
            args=[
                keys.NAMES,
                name,
                int(is_dead),
                limit,
                time.time(),
                QUEUED_TTL_S,
                f"Parked after {limit} attempts: the last worker, {name}, died while it ran this task.",
                "Look at the image, then POST /jobs/%s/retry.",
                beat,
            ],
        )
    )
    if is_dead:
        log.warning("worker %s stopped without a word; it left %d task(s)", name, len(queued_ids) + len(parked_ids))
    if queued_ids or parked_ids:
        queue.announce()
    for job_id in parked_ids:
        log.error("%s: parked, the last worker %s died while it ran this task", job_id, name)
    return sorted(queued_ids + parked_ids)


def absolve(queue: JobQueue, name: str) -> list[str]:
    """Take back the deaths that tasks counted while the living worker `name` was cut off or frozen. Their ids."""
    absolved_ids = load_script(queue.connection, "absolve")(
        keys=[keys.TAKEN_FROM + name, keys.PREDICT_LANE],
        args=[keys.NAMES, name, queue.settings.max_attempts, QUEUED_TTL_S],
    )
    if absolved_ids:
        log.warning("worker %s was cut off and is back; %d task(s) are not to blame", name, len(absolved_ids))
        queue.announce()
    return sorted(text(job_id) for job_id in absolved_ids)
