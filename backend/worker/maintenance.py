"""What runs beside a worker's batches: heartbeats, taking over from dead workers, pushing deferred predictions.

Deferred predictions are pushed into Label Studio once, in chunks, with retry; a lock per project leaves each project to
one worker. Deferred tasks are in Redis, so they outlive the process. After a push whose outcome is unknown (a timeout,
a killed worker) the tasks are looked up in Label Studio first: it has no duplicate check of its own.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import redis

from backend.predictions.projects import Project, Projects
from backend.queue.connection import load_script
from backend.queue.delivery import DeferredTasks, DeliveryClaims
from backend.queue.job_queue import JobQueue
from backend.queue.keys import NAMES, PUSH_LOCK, STATS
from backend.queue.locks import RenewedLock
from backend.queue.recovery import Heartbeat, OrphanSearch, absolve
from backend.settings import Settings
from backend.worker.images import label_studio_of
from backend.worker.model_cache import WarmModels
from backend.worker.prompt_runner import PromptRunner
from integration.label_studio.client import ClientError, LabelStudioClient
from integration.label_studio.tasks import Prediction

log = logging.getLogger(__name__)
POLL_S = 0.3
# Rows wait at most this long, in s, for a fuller chunk.
GATHER_S = 3.0


def connect(settings: Settings, project: Project) -> LabelStudioClient:
    """A client for the project's Label Studio.

    No retries inside: a repeated bulk import would store everything twice.
    """
    url, key = label_studio_of(settings, project)
    if not url:
        raise ClientError(
            f"the address {project.hostname!r} of project {project.id} is not used",
            status=401,
            fix="set LABEL_STUDIO_URL, or name its host in TRANSFINER_LABEL_STUDIO_HOSTS",
        )
    return LabelStudioClient(url, key, timeout_s=settings.label_studio_timeout_s, retries=0)


class Pusher:
    """Pushes deferred predictions into Label Studio."""

    def __init__(
        self,
        queue: JobQueue,
        settings: Settings,
        worker: str,
        *,
        connect: Callable[[Settings, Project], LabelStudioClient] = connect,
    ) -> None:
        self.settings = settings
        self.worker = worker
        self.connection = queue.connection
        self.records = queue.records
        self.deliveries = DeliveryClaims(queue.connection)
        self.projects = Projects(queue.connection)
        self.connect = connect
        self.clients: dict[tuple[str, str], LabelStudioClient] = {}
        self._break_lock = load_script(queue.connection, "break_lock")
        self.failures: dict[str, int] = {}
        self.wait_until: dict[str, float] = {}
        self.ready_since: dict[str, float] = {}

    def run(self, stop: threading.Event) -> None:
        """Push until told to stop."""
        while not stop.wait(POLL_S):
            try:
                self.push_ready()
            except redis.RedisError as error:
                log.warning("cannot look for deferred predictions: %s", error)
            except Exception:
                # A broken push must not end the thread: nothing deferred later would be delivered.
                log.exception("pushing failed unexpectedly; trying again")

    def push_ready(self) -> int:
        """Push one chunk of every project that has one; the number of predictions stored."""
        return sum(self._push_project(tasks) for tasks in self.deliveries.survey())

    def _push_project(self, tasks: DeferredTasks) -> int:
        key = tasks.project
        if time.monotonic() < self.wait_until.get(key, 0.0):
            return 0
        self.deliveries.drop(tasks.failed_ids)
        if not self._worth_pushing(key, len(tasks.done_ids), tasks.unfinished_count):
            return 0
        lock = RenewedLock(self.connection, PUSH_LOCK + key, self.worker, lost_after_s=self.settings.worker_lost_s)
        with lock:
            if not lock.is_held:
                self._break_lock(keys=[PUSH_LOCK + key], args=[NAMES])
                return 0
            # We hold the lock, so tasks still marked as being pushed were left by a worker that died.
            entries = self.deliveries.deferred_of(sorted(self.deliveries.being_pushed()))
            abandoned_ids = [job_id for job_id, entry in entries.items() if entry["project"] == key]
            self.deliveries.give_back(abandoned_ids, uncertain=True)
            ready_ids = self.deliveries.take(tasks.done_ids, self.settings.push_chunk)
            if not ready_ids:
                self.deliveries.end_overdue_claims(tasks.done_ids)
            return self._push(self.projects.get(key), ready_ids, lock)

    def _worth_pushing(self, key: str, done_count: int, unfinished_count: int) -> bool:
        """Whether to push now: a full chunk, the last tasks of a project, or anything after `GATHER_S`."""
        if not done_count:
            self.ready_since.pop(key, None)
            return False
        since = self.ready_since.setdefault(key, time.monotonic())
        is_worth = done_count >= self.settings.push_chunk or not unfinished_count or time.monotonic() - since > GATHER_S
        if is_worth:
            self.ready_since.pop(key, None)
        return is_worth

    def _push(self, project: Project, job_ids: list[str], lock: RenewedLock) -> int:
        if not job_ids:
            return 0
        entries = self.deliveries.deferred_of(job_ids)
        outcomes = self.records.outcomes(job_ids)
        rows = {i: _row(entries[i], outcomes[i].prediction) for i in job_ids if i in entries and i in outcomes}
        self.deliveries.drop([job_id for job_id in job_ids if job_id not in rows])
        uncertain_ids = {job_id for job_id in rows if entries[job_id].get("uncertain")}
        try:
            client = self._client(project)
            stored_ids = {job_id for job_id in uncertain_ids if _copies(client, rows[job_id])}
            missing_rows = {job_id: row for job_id, row in rows.items() if job_id not in stored_ids}
            # If this process was frozen, another worker may have imported these tasks meanwhile.
            if not lock.renew():
                log.warning("project %s: another worker has taken over; nothing is pushed", project.id)
                return 0
            created_count = 0
            if missing_rows:
                created_count = client.import_predictions(
                    int(project.id), list(missing_rows.values()), chunk=len(missing_rows)
                )
            if created_count < len(missing_rows):
                lost_count = len(missing_rows) - created_count
                log.warning("project %s: Label Studio dropped %d pushed prediction(s)", project.id, lost_count)
            # The lock may still have been lost between that check and the import.
            doubtful_rows = (
                missing_rows
                if not lock.renew()
                else {job_id: missing_rows[job_id] for job_id in uncertain_ids - stored_ids}
            )
            removed_count = sum(_remove_copies(client, row) for row in doubtful_rows.values())
        except ClientError as error:
            return self._failed(project, rows, error, lock)
        except Exception:
            if lock.is_held:
                self.deliveries.give_back(list(rows), uncertain=True)
            self._back_off(project)
            raise
        if removed_count:
            log.warning("project %s: removed %d prediction(s) that were stored twice", project.id, removed_count)
        self.deliveries.pushed(list(rows), keep_s=self.settings.result_ttl_s)
        self.failures.pop(project.key, None)
        self.connection.hincrby(STATS, "pushed", created_count - removed_count)
        log.info("project %s: pushed %d prediction(s)", project.id, created_count)
        return created_count

    def _failed(self, project: Project, rows: dict[str, dict[str, Any]], error: ClientError, lock: RenewedLock) -> int:
        """Handle a failed push: refused rows (400, 404, 422) are pushed one by one, other errors retried later."""
        self.connection.hincrby(STATS, "push_failures", 1)
        if not lock.is_held:
            return 0  # the new owner of the lock has the rows, too
        if error.status in (400, 404, 422) and len(rows) == 1:
            log.error("project %s: Label Studio refuses a prediction: %s", project.id, error)
            self.deliveries.drop(list(rows))
            return 0
        # A 4xx status says that nothing was stored; after no answer, or a 5xx, that is unknown.
        is_uncertain = error.status is None or error.status >= 500
        self.deliveries.give_back(list(rows), uncertain=is_uncertain)
        if error.status in (400, 404, 422):
            return sum(self._push(project, self.deliveries.take([job_id], 1), lock) for job_id in rows)
        delay_s = self._back_off(project)
        log.error("project %s: pushing %d failed, again in %.0f s: %s", project.id, len(rows), delay_s, error)
        return 0

    def _back_off(self, project: Project) -> float:
        """Pause pushes into a project, twice as long after each failure; returns the pause in s."""
        failures = self.failures[project.key] = self.failures.get(project.key, 0) + 1
        delay_s = min(self.settings.push_retry_s * 2 ** min(failures - 1, 30), self.settings.push_retry_max_s)
        self.wait_until[project.key] = time.monotonic() + delay_s
        # A new client fetches fresh credentials.
        self.clients.clear()
        return delay_s

    def _client(self, project: Project) -> LabelStudioClient:
        address = label_studio_of(self.settings, project)
        if address not in self.clients:
            self.clients[address] = self.connect(self.settings, project)
        return self.clients[address]


def _row(entry: dict[str, Any], prediction: Prediction | None) -> dict[str, Any]:
    assert prediction is not None
    return {"task": int(entry["task"]), **{name: prediction[name] for name in ("result", "score", "model_version")}}


def _copies(client: LabelStudioClient, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Predictions of the row's version that Label Studio has for the row's task, the oldest first."""
    predictions = client.list_predictions(task_id=row["task"])
    copies = [prediction for prediction in predictions if prediction.get("model_version") == row["model_version"]]
    return sorted(copies, key=lambda prediction: int(prediction.get("id") or 0))


def _remove_copies(client: LabelStudioClient, row: dict[str, Any]) -> int:
    """Remove all but the oldest of equal predictions; the number of removed ones."""

    def regions(prediction: Mapping[str, Any]) -> list[Any]:
        return [region.get("id") for region in prediction.get("result") or ()]

    equal_copies = [copy for copy in _copies(client, row) if regions(copy) == regions(row)]
    for copy in equal_copies[1:]:
        client.delete_prediction(int(copy["id"]))
    return len(equal_copies[1:])


MOST_BEAT_S = 1.5


class MaintenanceThread(threading.Thread):
    """Heartbeats, recovery and pushes, beside the batches, until `end`.

    Args:
        pushes: whether deferred predictions are pushed, too; not from an interactive worker, which must answer within
            tenths of a second.
    """

    def __init__(
        self,
        queue: JobQueue,
        vitals: Heartbeat,
        settings: Settings,
        models: WarmModels | PromptRunner,
        *,
        pushes: bool = True,
    ) -> None:
        super().__init__(name="maintenance", daemon=True)
        self.queue = queue
        self.vitals = vitals
        self.models = models
        self.born = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        self.stop = threading.Event()
        self.pushes = pushes
        self.pusher = threading.Thread(
            target=Pusher(queue, settings, vitals.name).run, args=(self.stop,), name="pusher", daemon=True
        )

    def run(self) -> None:
        if self.pushes:
            self.pusher.start()
        orphans = OrphanSearch(self.queue)
        while not self.stop.is_set():
            try:
                present = {"version": self.models.version, "models": self.models.facts}
                memory = {"memory_mib": _memory_mib(), "gpu_memory_mib": _gpu_memory_mib()}
                self.vitals.beat({**self.born, **present, **memory})
                absolve(self.queue, self.vitals.name)
                orphans.run()
            except redis.RedisError as error:
                log.warning("queue server: %s", error)
            except Exception:
                log.exception("looking after the queue failed; trying again")
            self.stop.wait(min(MOST_BEAT_S, self.vitals.lost_after_s / 4))

    def end(self) -> None:
        self.stop.set()
        self.join(5)
        if self.pushes:
            self.pusher.join(5)


def _gpu_memory_mib() -> int:
    """GPU memory that torch has reserved, 0 without a GPU; reads torch only where it is already imported."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(sum(torch.cuda.memory_reserved(n) for n in range(torch.cuda.device_count()))) // 2**20


def _memory_mib() -> int:
    """Current resident memory; its peak on other systems than Linux."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return pages * resource.getpagesize() // 2**20
