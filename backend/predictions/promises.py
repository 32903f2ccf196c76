"""What this process has answered "deferred", asked for again should the queue server forget it.

Label Studio does not ask twice. A queue server that was emptied, or that was restarted without its data, knows neither
the tasks nor that somebody must deliver them; the API process that made the promise does. Only both of them lost at the
same moment lose it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import redis

from backend.predictions.projects import Project, Projects
from backend.queue.delivery import DeliveryClaim, DeliveryClaims
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.job_store import FAILED, PARKED

log = logging.getLogger(__name__)
# Promises are compared with the queue server this often, in s.
LOOK_S = 2.0
# Promises are remembered up to this size; a task with an address takes about 1 kB, one with its image inside more.
MOST_BYTES = 64 * 2**20
BYTES_A_TASK = 1000


@dataclass(frozen=True, slots=True)
class _Promise:
    project: Project
    job: PredictionJob
    size: int


class PromiseKeeper:
    """The promises of one API process; a thread looks after them while there are any."""

    def __init__(self, queue: JobQueue, deliveries: DeliveryClaims, projects: Projects) -> None:
        self.queue = queue
        self.deliveries = deliveries
        self.projects = projects
        self._promises: dict[str, _Promise] = {}
        self._bytes = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def keep(self, project: Project, jobs: Sequence[PredictionJob]) -> None:
        """Remember that predictions of these tasks were promised."""
        with self._lock:
            for job in jobs:
                size = BYTES_A_TASK + sum(len(str(value)) for value in job.task["data"].values())
                if job.id in self._promises:
                    continue
                if self._bytes + size > MOST_BYTES:
                    log.warning("%d promises are remembered; only the queue server knows the others", len(self))
                    break
                self._promises[job.id] = _Promise(project, job, size)
                self._bytes += size
            if self._promises and self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="promises", daemon=True)
                self._thread.start()

    def __len__(self) -> int:
        return len(self._promises)

    def look(self) -> list[str]:
        """Forget what was delivered or ended with a reason, ask again for what the queue server forgot; ids of these.

        Raises:
            RedisError: it does not answer; another look will do.
        """
        with self._lock:
            promises = dict(self._promises)
        for project in {promise.project.key: promise.project for promise in promises.values()}.values():
            # Without its address nothing can be pushed, and its next /setup may be far.
            if project.hostname and not self.projects.get(project.key).hostname:
                self.projects.save(project)
        waiting = self.deliveries.deferred_of(list(promises))
        others = [job_id for job_id in promises if job_id not in waiting]
        notes = self.queue.records.notes(others)
        ended = [
            job_id
            for job_id in others
            if notes[job_id][1] in ("answered", "pushed") or notes[job_id][0] in (FAILED, PARKED)
        ]
        forgotten = {job_id: promises[job_id] for job_id in others if job_id not in set(ended)}
        if forgotten:
            self._ask_again(forgotten)
        with self._lock:
            for job_id in ended:
                self._bytes -= self._promises.pop(job_id).size
        return list(forgotten)

    def _ask_again(self, promises: dict[str, _Promise]) -> None:
        log.warning("the queue server forgot %d deferred task(s); they are queued again", len(promises))
        self.queue.submit([promise.job for promise in promises.values()])
        # A push may have been under way: the pusher looks in Label Studio first.
        facts = {
            job_id: {"project": promise.project.key, "task": promise.job.task["id"], "uncertain": True}
            for job_id, promise in promises.items()
        }
        self.deliveries.defer(DeliveryClaim("promises:0:0", tuple(facts)), facts)

    def close(self) -> None:
        """End the thread; for a process that goes on."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self.look()
            except redis.RedisError as error:
                log.debug("the queue server does not answer: %s", error)
            except Exception:
                log.exception("looking after promises failed; trying again")
            with self._lock:
                if not self._promises:
                    self._thread = None
                    return
