"""Workers' signs of life, and what happens to the tasks of those that stopped giving any.

RQ itself notices a killed in-process worker only after minutes. Here every worker renews a key that expires within
seconds and lists what it is running; the others (and its own successor) take over from a dead one.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from redis import Redis

from backend.queue.connection import text
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.job_store import PARKED, QUEUED, RUNNING, JobOutcome

log = logging.getLogger(__name__)
WORKERS = "transfiner:workers"
LOCK = "transfiner:orphans-lock"
# A job that waits in no list, though its record says so, fell out between two commands; it is put back after this.
LOST_AFTER_S = 15.0


def worker_key(name: str) -> str:
    return f"transfiner:worker:{name}"


def running_key(name: str) -> str:
    return f"transfiner:running:{name}"


class Heartbeat:
    """The signs of life of one worker."""

    def __init__(self, connection: Redis, name: str, *, lost_after_s: float) -> None:
        self.connection = connection
        self.name = name
        self.lost_after_s = lost_after_s

    def beat(self, facts: dict[str, Any]) -> None:
        with self.connection.pipeline() as pipe:
            pipe.sadd(WORKERS, self.name)
            pipe.set(worker_key(self.name), json.dumps(facts), px=int(self.lost_after_s * 1000))
            pipe.execute()

    def leave(self) -> None:
        """A decent end: nothing is left to take over."""
        with self.connection.pipeline() as pipe:
            pipe.srem(WORKERS, self.name)
            pipe.delete(worker_key(self.name), running_key(self.name))
            pipe.execute()


def living_workers(connection: Redis) -> dict[str, dict[str, Any]]:
    """Facts of each worker that was heard of lately."""
    names = sorted(text(member) for member in connection.smembers(WORKERS))
    values = connection.mget([worker_key(name) for name in names]) if names else []
    return {name: json.loads(value) for name, value in zip(names, values, strict=True) if value}


def requeue_orphans(queue: JobQueue) -> list[str]:
    """Put tasks of dead workers back at the front; park those that were there too often. Ids of the tasks found.

    Any number of processes may call this at any time.
    """
    connection = queue.connection
    if not connection.set(LOCK, "1", nx=True, px=5000):
        return []
    try:
        alive = living_workers(connection)
        dead = [name for name in map(text, connection.smembers(WORKERS)) if name not in alive]
        return [job_id for name in dead for job_id in requeue_jobs_of(queue, name)]
    finally:
        connection.delete(LOCK)


def requeue_jobs_of(queue: JobQueue, name: str) -> list[str]:
    """The same for one worker that is known to run nothing any more."""
    connection = queue.connection
    ids = sorted(text(member) for member in connection.smembers(running_key(name)))
    log.warning("worker %s stopped without a word; it left %d task(s)", name, len(ids))
    for job_id in ids:
        state, attempts = connection.hmget(f"transfiner:task:{job_id}", "state", "attempts")
        if state == RUNNING.encode():
            _put_back(queue, job_id, int(attempts or 0), f"worker {name} died while it ran this task")
    with connection.pipeline() as pipe:
        pipe.srem(WORKERS, name)
        pipe.delete(running_key(name))
        pipe.execute()
    return ids


def _put_back(queue: JobQueue, job_id: str, attempts: int, why: str) -> None:
    if attempts >= queue.settings.max_attempts:
        error = f"Parked after {attempts} attempts: {why}."
        hint = f"Look at the image, then POST /jobs/{job_id}/retry."
        queue.records.finish(job_id, JobOutcome(error=error, hint=hint), state=PARKED)
        log.error("%s: %s %s", job_id, error, hint)
        return
    payload = queue.records.payload(job_id)
    if payload is None:
        return
    queue.records.requeue(job_id)
    queue.enqueue_first({job_id: PredictionJob.from_payload(payload)})
    log.warning("%s: %s; queued again", job_id, why)


def requeue_lost(queue: JobQueue, limit: int = 500) -> list[str]:
    """Queue again what is `queued` by its record but in no list: its worker died between taking and noting it."""
    now = time.time()
    waiting = {i for lane in (queue.predict, queue.interactive) for i in lane.get_job_ids()}
    lost = [
        job_id
        for job_id, since in queue.records.queued(limit).items()
        if job_id not in waiting and now - since > LOST_AFTER_S
    ]
    # A worker may have taken it since the lists were read: only what is still `queued` is put back.
    lost = [i for i, state in zip(lost, queue.records.states(lost), strict=True) if state == QUEUED]
    for job_id in lost:
        _put_back(queue, job_id, 0, "it was taken from the queue but never started")
    return lost
