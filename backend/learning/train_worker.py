"""A worker of the queue `train`: runs one round at a time and stays small itself."""

from __future__ import annotations

import logging
import os
import socket

import redis
from redis import Redis

from backend.learning.label_studio import LabelStudioProject
from backend.learning.learner import Learner, ProjectClient
from backend.learning.steps import StepCommand
from backend.learning.watcher import Watcher
from backend.queue.connection import require_queue_server, worker_connection
from backend.queue.train_queue import forget_trainer, trainer_heartbeat
from backend.settings import Settings
from backend.worker.main import StopSignal, serve_queue

log = logging.getLogger(__name__)


def run_train_worker(
    settings: Settings,
    *,
    label_studio: ProjectClient | None = None,
    command: StepCommand | None = None,
    burst: bool = False,
) -> None:
    """Serve the queue `train` until SIGTERM or SIGINT. For the main thread of a process.

    Asked to stop, it ends the training's process, which keeps its state, and puts the round back.
    """
    connection = worker_connection(settings)
    require_queue_server(connection, settings)
    name = f"train-{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
    client = label_studio or LabelStudioProject(settings, connection).side()
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
        _leave(connection, name)


def run_next(learner: Learner) -> bool:
    """Run the training that waits longest; False when none waits."""
    training = learner.queue.take()
    if training is None:
        return False
    learner.learn(*training)
    return True


def _leave(connection: Redis, name: str) -> None:
    try:
        forget_trainer(connection, name)
    except redis.RedisError as error:
        log.warning("left without saying goodbye: %s", error)
