"""Cancelling work that still waits, because a person says so. What a worker has begun goes on to its end."""

from __future__ import annotations

from collections.abc import Sequence

from redis import Redis
from rq.job import Job

from backend.queue.connection import text
from backend.queue.delivery import DeliveryClaims
from backend.queue.job_queue import JobQueue
from backend.queue.job_store import FinishedJob, JobOutcome

CANCELLED = JobOutcome(
    error="Cancelled before a worker took it.", hint="Open the task in Label Studio or retrieve its predictions again."
)


def cancel_waiting(queue: JobQueue, deliveries: DeliveryClaims, *, project: str = "", job_id: str = "") -> int:
    """End waiting tasks as failed, so that requests that wait for them are answered and nothing is pushed later.

    Args:
        project: Label Studio's id of the project, "" for all. job_id: only this one.

    Returns:
        How many were cancelled; none of them had been taken by a worker.
    """
    waiting = _waiting(queue)
    chosen = _of_project(queue, waiting, project) if project else waiting
    taken_out = _take_out(queue, [one for one in chosen if job_id in ("", one)])
    if taken_out:
        deliveries.drop(taken_out)
        queue.records.finish_all(
            {one: FinishedJob(CANCELLED, {}) for one in taken_out},
            lambda pipe: pipe.delete(*(Job.key_for(one) for one in taken_out)),
        )
    return len(taken_out)


def _waiting(queue: JobQueue) -> list[str]:
    connection: Redis = queue.connection
    return [
        text(one) for lane in (queue.interactive, queue.predict) for one in list(connection.lrange(lane.key, 0, -1))
    ]


def _of_project(queue: JobQueue, job_ids: Sequence[str], project: str) -> list[str]:
    keys = queue.records.projects(job_ids)
    return [one for one in job_ids if keys[one].partition(".")[0] == project]


def _take_out(queue: JobQueue, job_ids: Sequence[str]) -> list[str]:
    """Those that no worker was quicker to take."""
    with queue.connection.pipeline() as pipe:
        for one in job_ids:
            pipe.lrem(queue.interactive.key, 1, one)
            pipe.lrem(queue.predict.key, 1, one)
        removed = pipe.execute()
    return [one for place, one in enumerate(job_ids) if any(removed[2 * place : 2 * place + 2])]
