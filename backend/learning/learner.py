"""What a worker of the queue `train` does with one request: lock, record, round, books, and what asked meanwhile."""

from __future__ import annotations

import functools
import logging
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import redis
from redis import Redis

from backend.errors import ServiceError, StartError
from backend.learning import run_record as runs
from backend.learning.round import Interrupted, Round, RoundParts
from backend.learning.run_record import Run, RunStore, started_runs
from backend.learning.steps import StepCommand, step_command
from backend.queue.locks import RenewedLock, project_lock
from backend.queue.train_queue import Progress, TrainQueue
from backend.settings import Settings
from backend.versions.resolve import registry_of
from integration.label_studio.client import ClientError

if TYPE_CHECKING:
    from backend.learning.label_studio import LabelStudioProject

log = logging.getLogger(__name__)
CANCELLED, STOPPING, LOST = "cancelled", "stopping", "lost"
# A round whose worker was killed is begun once more, not for ever.
MOST_ATTEMPTS = 2
LOGS = ("finetune.log", "gate.log")


@dataclass
class Learner:
    """One a worker process.

    Attributes:
        worker: its name; the lock's owner begins with it.
        is_stopping: the process was asked to end: the round is put back and goes on elsewhere.
    """

    settings: Settings
    connection: Redis
    worker: str
    label_studio: LabelStudioProject
    command: StepCommand | None = None
    is_stopping: bool = False
    queue: TrainQueue = field(init=False)
    store: RunStore = field(init=False)
    registry: Any = field(init=False)

    def __post_init__(self) -> None:
        if not self.settings.registry:
            raise StartError("Learning is off: TRANSFINER_REGISTRY is empty.", "Set it to a folder or a bucket.")
        self.queue = TrainQueue(self.connection)
        self.store = RunStore(self.settings.registry)
        self.registry = registry_of(self.settings)
        self.command = self.command or functools.partial(step_command, self.settings)

    def stop(self) -> None:
        """End what runs, whose round is put back."""
        self.is_stopping = True

    def learn(self, project: str, run_id: str) -> str:
        """Run the round that a request stands for; how it ended, "" when it is not wanted any more."""
        owner = f"{self.worker}:{run_id}"
        give_up = time.monotonic() + 2 * self.settings.learning_lost_s
        while time.monotonic() < give_up and not self.is_stopping:
            with project_lock(self.connection, project, owner, lost_after_s=self.settings.learning_lost_s) as lock:
                if lock.is_held:
                    return self._with_lock(project, run_id, lock)
            # Its owner may have died a moment ago; its lock ends soon.
            time.sleep(0.2)
        if self.queue.current(project).get("run") == run_id:
            self.queue.put_back(project, run_id)
        return ""

    def _with_lock(self, project: str, run_id: str, lock: RenewedLock) -> str:
        request = self.queue.current(project)
        if request.get("run") != run_id:
            return ""  # cancelled, or done by somebody else
        run = self.store.load(project, run_id) or Run(
            run_id, project, trigger=request["trigger"], requested_at=float(request.get("requested_at") or 0)
        )
        if run.is_over:
            self.queue.end(project, run_id)
            return run.state
        return self._attempt(started_runs(run, self.worker), lock)

    def _attempt(self, run: Run, lock: RenewedLock) -> str:
        progress = Progress(self.queue, run.project, run.id, self.worker)
        round_ = Round(self._parts(run, progress, lock), run)
        try:
            round_.learn()
            if run.state == runs.PROMOTED:
                self._follow(run, progress)
        except Interrupted as stop:
            return self._interrupted(run, stop.reason)
        except (ServiceError, ClientError, OSError, ValueError, LookupError) as error:
            self._failed(run, error)
        except Exception as error:
            log.exception("round %s failed unexpectedly", run.id)
            self._failed(run, error)
        self._close(run)
        return run.state

    def _parts(self, run: Run, progress: Progress, lock: RenewedLock) -> RoundParts:
        def stop_because() -> str:
            if not _is_held(lock):
                return LOST
            if self.is_stopping:
                return STOPPING
            return CANCELLED if self.queue.is_cancelled(run.project, run.id) else ""

        assert self.command is not None
        return RoundParts(
            self.settings, self.registry, self.store, self.command, self.label_studio, progress, stop_because
        )

    def _follow(self, run: Run, progress: Progress) -> None:
        """Label Studio being away now does not undo a promotion: whoever watches makes up for it later."""
        progress.stage("label studio")
        try:
            done = self.label_studio.follow(run.project).done
            run.note = f"Set in Label Studio: {'; '.join(done)}." if done else ""
        except (ClientError, OSError) as error:
            run.note = f"Label Studio does not show the version yet: {error}"
            log.warning("project %s: %s", run.project, run.note)

    def _interrupted(self, run: Run, reason: str) -> str:
        log.info("project %s: round %s is interrupted (%s)", run.project, run.id, reason)
        if reason == CANCELLED:
            run.state, run.ended_at = runs.CANCELLED, time.time()
            self._close(run)
        elif reason == STOPPING:
            # Not its fault: the attempt does not count.
            run.attempts -= 1
            self.store.save(run)
            self.queue.revive(run.project, run.id, run.attempts, run.trigger)
        return reason

    def _failed(self, run: Run, error: Exception) -> None:
        run.state, run.ended_at = runs.FAILED, time.time()
        run.error = getattr(error, "error", None) or f"{error}" or type(error).__name__
        run.hint = getattr(error, "hint", "")
        log.error("project %s: round %s failed: %s", run.project, run.id, error)

    def _close(self, run: Run) -> None:
        """Record, logs, room on the disk, and whoever asked meanwhile."""
        current = self.queue.current(run.project)
        run.folded = current.get("folded", 0)
        work = self.settings.learning_folder / run.project / run.id
        for name in LOGS:
            if (work / name).is_file():
                self.store.write(run, name, (work / name).read_bytes())
        self.store.save(run)
        shutil.rmtree(work, ignore_errors=True)
        again = self.queue.end(run.project, run.id)
        log.info("project %s: round %s is %s", run.project, run.id, run.state)
        if again and run.state != runs.CANCELLED:
            # The next round looks for itself whether anything is newer.
            self.queue.request(run.project, again)


def _is_held(lock: RenewedLock) -> bool:
    """Asked of the queue server: a process that was frozen must not promote over what another has promoted since."""
    try:
        return lock.renew()
    except redis.RedisError:
        return lock.is_held
