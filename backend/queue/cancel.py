"""Cancelling work that still waits, because a person says so. What a worker has begun goes on to its end."""

from __future__ import annotations

import time

from backend.queue.connection import text
from backend.queue.job_queue import JobQueue
from backend.queue.keys import NAMES
from backend.queue.lua import load_script

ERROR = "Cancelled before a worker took it."
HINT = "Open the task in Label Studio or retrieve its predictions again."


def cancel_waiting(queue: JobQueue, *, project: str = "", job_id: str = "") -> int:
    """End waiting tasks as failed, so that requests that wait for them are answered and nothing is pushed later.

    Args:
        project: Label Studio's id of the project, "" for all. job_id: only this one.

    Returns:
        How many were cancelled; none of them had been taken by a worker.
    """
    lanes = [queue.interactive.key, queue.predict.key]
    waiting = [text(member) for lane in lanes for member in list(queue.connection.lrange(lane, 0, -1))]
    chosen = [waiting_id for waiting_id in waiting if job_id in ("", waiting_id)]
    if project:
        keys = queue.records.projects(chosen)
        chosen = [waiting_id for waiting_id in chosen if keys[waiting_id].partition(".")[0] == project]
    if not chosen:
        return 0
    script = load_script(queue.connection, "cancel")
    return len(script(keys=lanes, args=[NAMES, ERROR, HINT, time.time(), queue.settings.result_ttl_s, *chosen]))
