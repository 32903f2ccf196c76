"""A worker of the queue `train`: runs one round at a time, stays small itself, and looks after the projects meanwhile.

Looking after: takes over from dead workers, looks for what is new, keeps titles right. A lock lets one worker look at a
time. What is remembered can be seen again.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import Any

import redis

from backend.learning import run_record as runs
from backend.learning.label_studio import LabelStudioProject
from backend.learning.learner import MOST_ATTEMPTS, Learner
from backend.learning.round import newest_trigger_state
from backend.learning.steps import StepCommand
from backend.learning.triggers import TriggerState, training_reason
from backend.predictions.projects import Project, Projects
from backend.queue.connection import require_queue_server, worker_connection
from backend.queue.keys import WATCH_LOCK, trigger_state_key
from backend.queue.locks import RenewedLock, lock_owner
from backend.queue.train_queue import QUEUED, RUNNING, forget_trainer, read_trigger_state, trainer_heartbeat
from backend.settings import Settings
from backend.worker.main import StopSignal, serve_queue
from integration.label_studio.client import ClientError

log = logging.getLogger(__name__)


def run_train_worker(
    settings: Settings,
    *,
    label_studio: LabelStudioProject | None = None,
    command: StepCommand | None = None,
    burst: bool = False,
) -> None:
    """Serve the queue `train` until SIGTERM or SIGINT. For the main thread of a process.

    Asked to stop, it ends the training's process, which keeps its state, and puts the round back.
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
        # What the queue server forgot, the records in the registry still say: the watcher asks for it again.
        serve_queue(
            lambda: run_next(learner),
            connection,
            StopSignal(learner.stop),
            burst=burst,
            connected=lambda: trainer_heartbeat(connection, name),
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
# Longer than looking at a project takes; a watcher that died holds up the others no longer.
WATCH_LOST_S = 30.0
# A request that is in no list was taken by a worker that died before it began; it is put back after this many s.
LOST_REQUEST_S = 15.0
# A flood of events makes at most one look in this many s.
LEAST_PAUSE_S = 5.0


class Watcher(threading.Thread):
    """A thread beside the trainings of one worker."""

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
        """Take over what was left behind; look at each project whose time has come."""
        known = {project.id: project for project in self.projects.all()}
        for name in sorted({*known, *self.queue.projects(), *self.learner.store.projects()}):
            self.adopt(name)
        for name, project in known.items():
            if self._is_due(name, project):
                self.look(name)

    def adopt(self, project: str) -> str:
        """Go on with a round whose worker died: once. The id of the round, "" when there was none."""
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
        # The round may have ended between these looks.
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
        """A worker died after its round was over."""
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
        """Derive whether to train now; the trigger, "" for none."""
        facts: dict[Any, Any] = {"at": time.time(), "error": "", "connected": 0}
        trigger = ""
        try:
            looked = self._looked(project)
            facts["new"] = looked.new_annotations
            trigger = training_reason(looked, self.settings)
            settled = self.learner.label_studio.follow(project)
            facts["connected"] = int(settled.is_connected)
            facts["title"] = settled.project
            if settled.done:
                facts["set"] = "; ".join(settled.done)
        except (ClientError, OSError, ValueError) as error:
            log.warning("project %s cannot be looked at: %s", project, error)
            facts["error"] = str(error)
        self.connection.hset(trigger_state_key(project), mapping=facts)
        if trigger and not self.queue.current(project):
            log.info("project %s: %s", project, self.queue.request(project, trigger).message)
        return trigger

    def _looked(self, project: str) -> TriggerState:
        newest_at = newest_trigger_state(self.learner.registry, self.learner.store, project)
        count = self.learner.label_studio.count_new(project, newest_at)
        last = next(iter(self.learner.store.newest(project, 1)), None)
        if last is None:
            return TriggerState(count)
        went_wrong = last.state in (runs.FAILED, runs.CANCELLED) and not last.snapshot
        failed_at = last.new_annotations if went_wrong else -1
        return TriggerState(count, (time.time() - last.ended_at) / 3600, failed_at)

    def _is_due(self, name: str, project: Project) -> bool:
        """Soon after an event, and after a /setup while Label Studio did not list our backend yet."""
        state = read_trigger_state(self.connection, name)
        looked_at = float(state.get("at", 0))
        pause_s = time.time() - looked_at
        heard_at = project.changed_at if state.get("connected") else max(project.changed_at, project.seen_at)
        return pause_s > self.settings.learning_check_s or (heard_at > looked_at and pause_s > LEAST_PAUSE_S)
