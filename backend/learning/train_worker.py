"""A worker of the queue `train`: runs one round at a time in child processes, and watches the projects meanwhile.

A round: lock, record, steps, record again, then a request that came meanwhile. The watcher takes over rounds of dead
workers, looks for new annotations and keeps titles up to date; a lock lets one worker watch at a time. All that it
stores can be derived again.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import redis
from redis import Redis

from backend.errors import ServiceError, StartError
from backend.learning import round as runs
from backend.learning.label_studio import LabelStudioProject, TriggerState, training_reason
from backend.learning.round import Interrupted, Round, RoundParts, Run, RunStore, newest_trigger_state, started_run
from backend.learning.steps import StepCommand, check_step_options, step_command
from backend.predictions.projects import Project, Projects
from backend.queue.connection import require_queue_server, worker_connection
from backend.queue.keys import WATCH_LOCK, trigger_state_key
from backend.queue.locks import RenewedLock, lock_owner, project_lock
from backend.queue.train_queue import (
    QUEUED,
    RUNNING,
    Progress,
    TrainQueue,
    forget_trainer,
    read_trigger_state,
    trainer_heartbeat,
)
from backend.settings import Settings
from backend.versions.resolve import registry_of
from backend.worker.main import StopSignal, serve_queue
from integration.label_studio.client import ClientError

log = logging.getLogger(__name__)
CANCELLED, STOPPING, LOST = "cancelled", "stopping", "lost"
# A round whose worker was killed is begun once more, then given up.
MOST_ATTEMPTS = 2
LOGS = ("finetune.log", "gate.log")


@dataclass
class Learner:
    """Runs the rounds of one worker process.

    Attributes:
        worker: its name; the lock's owner begins with it.
        is_stopping: whether the process was asked to end: the round is put back and goes on elsewhere.
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
        check_step_options(self.settings)
        self.queue = TrainQueue(self.connection)
        self.store = RunStore(self.settings.registry)
        self.registry = registry_of(self.settings)
        self.command = self.command or functools.partial(step_command, self.settings)

    def stop(self) -> None:
        """Stop the current round, which is put back."""
        self.is_stopping = True

    def learn(self, project: str, run_id: str) -> str:
        """Run the round of a request; its final state, "" when the request is cancelled or already done."""
        owner = f"{self.worker}:{run_id}"
        give_up = time.monotonic() + 2 * self.settings.learning_lost_s
        while time.monotonic() < give_up and not self.is_stopping:
            with project_lock(self.connection, project, owner, lost_after_s=self.settings.learning_lost_s) as lock:
                if lock.is_held:
                    return self._with_lock(project, run_id, lock)
            # The owner may have died a moment ago; its lock expires soon.
            time.sleep(0.2)
        if self.queue.current(project).get("run") == run_id:
            self.queue.put_back(project, run_id)
        return ""

    def _with_lock(self, project: str, run_id: str, lock: RenewedLock) -> str:
        request = self.queue.current(project)
        if request.get("run") != run_id:
            return ""  # cancelled, or done by another worker
        run = self.store.load(project, run_id) or Run(
            run_id, project, trigger=request["trigger"], requested_at=float(request.get("requested_at") or 0)
        )
        if run.is_over:
            self.queue.end(project, run_id)
            return run.state
        return self._attempt(started_run(run, self.worker), lock)

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
        """Show the version in Label Studio; where that fails, the promotion stays and the watcher tries again later."""
        progress.stage("label studio")
        try:
            messages = self.label_studio.follow(run.project).messages
            run.note = f"Set in Label Studio: {'; '.join(messages)}." if messages else ""
        except (ClientError, OSError) as error:
            run.note = f"Label Studio does not show the version yet: {error}"
            log.warning("project %s: %s", run.project, run.note)

    def _interrupted(self, run: Run, reason: str) -> str:
        log.info("project %s: round %s is interrupted (%s)", run.project, run.id, reason)
        if reason == CANCELLED:
            run.state, run.ended_at = runs.CANCELLED, time.time()
            self._close(run)
        elif reason == STOPPING:
            # The round did not fail: the attempt does not count.
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
        """Save record and logs, free the disk, and queue a request that was folded into the round."""
        current = self.queue.current(run.project)
        run.folded = current.get("folded", 0)
        work = self.settings.learning_folder / run.project / run.id
        for name in LOGS:
            if (work / name).is_file():
                self.store.write(run, name, (work / name).read_bytes())
        self.store.save(run)
        shutil.rmtree(work, ignore_errors=True)
        next_trigger = self.queue.end(run.project, run.id)
        log.info("project %s: round %s is %s", run.project, run.id, run.state)
        if next_trigger and run.state != runs.CANCELLED:
            # The next round checks itself whether anything is newer.
            self.queue.request(run.project, next_trigger)


def _is_held(lock: RenewedLock) -> bool:
    """Ask the queue server: a process that was frozen must not promote over another one's later promotion."""
    try:
        return lock.renew()
    except redis.RedisError:
        return lock.is_held


def run_train_worker(
    settings: Settings,
    *,
    label_studio: LabelStudioProject | None = None,
    command: StepCommand | None = None,
    burst: bool = False,
) -> None:
    """Serve the queue `train` until SIGTERM or SIGINT. For the main thread of a process.

    When asked to stop, it ends the training's process, which saves its state, and puts the round back.
    """
    connection = worker_connection(settings)
    require_queue_server(connection, settings)
    name = f"train-{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
    client = label_studio or LabelStudioProject(settings, connection)
    learner = Learner(settings, connection, name, client, command)
    watcher = Watcher(learner)
    watcher.start()
    log.info("worker %s takes trainings; registry %s", name, settings.registry)
    try:
        # Requests that the queue server lost are still recorded in the registry: the watcher queues them again.
        serve_queue(
            lambda: run_next(learner),
            connection,
            StopSignal(learner.stop),
            burst=burst,
            on_connect=lambda: trainer_heartbeat(connection, name),
        )
    finally:
        watcher.stop.set()
        watcher.join(5)
        try:
            forget_trainer(connection, name)
        except redis.RedisError as error:
            log.warning("left without saying goodbye: %s", error)


def run_next(learner: Learner) -> bool:
    """Run the training that waits longest; False when none waits."""
    training = learner.queue.take()
    if training is None:
        return False
    learner.learn(*training)
    return True


TICK_S = 1.0
# Longer than a look at a project takes; a watcher that died delays the others by no more than this, in s.
WATCH_LOST_S = 30.0
# A queued request in no list was taken by a worker that died before it began; it is put back after this time, in s.
LOST_REQUEST_S = 15.0
# However many events come, a project is looked at once in this time, in s.
LEAST_PAUSE_S = 5.0


class Watcher(threading.Thread):
    """Watches all projects, in a thread beside the trainings of one worker."""

    def __init__(self, learner: Learner) -> None:
        super().__init__(name="learning watcher", daemon=True)
        self.learner = learner
        self.queue = learner.queue
        self.connection = learner.connection
        self.settings = learner.settings
        self.projects = Projects(learner.connection)
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(TICK_S):
            try:
                trainer_heartbeat(self.connection, self.learner.worker)
                with RenewedLock(self.connection, WATCH_LOCK, self.learner.worker, lost_after_s=WATCH_LOST_S) as lock:
                    if lock.is_held:
                        self.look_after_all()
            except redis.RedisError as error:
                log.warning("queue server: %s", error)
            except Exception:
                log.exception("looking after the projects failed; trying again")

    def look_after_all(self) -> None:
        """Take over rounds of dead workers; look at each project that is due."""
        projects_by_id = {project.id: project for project in self.projects.all()}
        for name in sorted({*projects_by_id, *self.queue.projects(), *self.learner.store.projects()}):
            self.adopt(name)
        for name, project in projects_by_id.items():
            if self._is_due(name, project):
                self.look(name)

    def adopt(self, project: str) -> str:
        """Queue a round again whose worker died, once. The id of the round, "" when there was none."""
        if lock_owner(self.connection, project):
            return ""
        request = self.queue.current(project)
        if request.get("state") == QUEUED:
            return self._put_back(project, request)
        if request and request.get("state") != RUNNING:
            return ""
        newest = self.learner.store.newest(project, 1)
        run = self.learner.store.load(project, request["run"]) if request else next(iter(newest), None)
        if run is None or run.is_over:
            return self._forget(project, request)
        # Another worker may have taken the lock meanwhile.
        if lock_owner(self.connection, project):
            return ""
        if run.attempts >= MOST_ATTEMPTS:
            self._give_up(run)
            return ""
        log.warning("project %s: the worker of round %s died; it goes on", project, run.id)
        self.queue.revive(project, run.id, run.attempts, run.trigger)
        return run.id

    def _put_back(self, project: str, request: dict[str, Any]) -> str:
        age_s = time.time() - float(request.get("requested_at") or 0)
        if age_s < LOST_REQUEST_S or self.queue.is_listed(project, request["run"]):
            return ""
        self.queue.put_back(project, request["run"])
        return str(request["run"])

    def _forget(self, project: str, request: dict[str, Any]) -> str:
        """Remove the request of a worker that died after its round was over."""
        if request:
            self.queue.end(project, request["run"])
        return ""

    def _give_up(self, run: runs.Run) -> None:
        run.state, run.ended_at = runs.FAILED, time.time()
        run.error = f"Its worker was killed {run.attempts} times during the stage {run.stage!r}."
        run.hint = "Look at the worker's log and at the machine's memory, then start a training again."
        log.error("project %s: round %s: %s", run.project, run.id, run.error)
        self.learner.store.save(run)
        self.queue.end(run.project, run.id)

    def look(self, project: str) -> str:
        """Look for new annotations and queue a training where they call for one; the trigger, "" for none."""
        facts: dict[Any, Any] = {"at": time.time(), "error": "", "connected": 0}
        trigger = ""
        try:
            state = self._trigger_state(project)
            facts["new"] = state.new_annotations
            trigger = training_reason(state, self.settings)
            update = self.learner.label_studio.follow(project)
            facts["connected"] = int(update.is_connected)
            facts["title"] = update.project
            if update.messages:
                facts["set"] = "; ".join(update.messages)
        except (ClientError, OSError, ValueError) as error:
            log.warning("project %s cannot be looked at: %s", project, error)
            facts["error"] = str(error)
        self.connection.hset(trigger_state_key(project), mapping=facts)
        if trigger and not self.queue.current(project):
            log.info("project %s: %s", project, self.queue.request(project, trigger).message)
        return trigger

    def _trigger_state(self, project: str) -> TriggerState:
        newest_at = newest_trigger_state(self.learner.registry, self.learner.store, project)
        count = self.learner.label_studio.count_new(project, newest_at)
        newest_run = next(iter(self.learner.store.newest(project, 1)), None)
        if newest_run is None:
            return TriggerState(count)
        has_failed = newest_run.state in (runs.FAILED, runs.CANCELLED) and not newest_run.snapshot
        failed_at = newest_run.new_annotations if has_failed else -1
        return TriggerState(count, (time.time() - newest_run.ended_at) / 3600, failed_at)

    def _is_due(self, name: str, project: Project) -> bool:
        """Whether to look: after `learning_check_s`, or soon after an event or the first /setup."""
        state = read_trigger_state(self.connection, name)
        looked_at = float(state.get("at", 0))
        pause_s = time.time() - looked_at
        heard_at = project.changed_at if state.get("connected") else max(project.changed_at, project.seen_at)
        return pause_s > self.settings.learning_check_s or (heard_at > looked_at and pause_s > LEAST_PAUSE_S)
