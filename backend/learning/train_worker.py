"""A worker of the queue `train`: an RQ worker that runs one round at a time and stays small itself."""

from __future__ import annotations

import logging
import os
import socket

import redis
from rq import SimpleWorker
from rq.serializers import JSONSerializer

from backend.errors import TaskError
from backend.learning.label_studio import LabelStudioProject
from backend.learning.learner import Learner, ProjectClient
from backend.learning.round import RoundPrograms
from backend.learning.watcher import Watcher
from backend.queue.connection import require_queue_server, worker_connection
from backend.queue.train_queue import forget_trainer, trainer_heartbeat
from backend.settings import Settings
from backend.worker.main import WORKER_TTL_S, serve_queue

log = logging.getLogger(__name__)
_learner: Learner | None = None


def learn(project: str, run: str) -> str:
    """The function behind every job of the queue; how the round ended.

    Raises:
        TaskError: a plain RQ worker took it.
    """
    if _learner is None:
        raise TaskError(
            "This job was taken by a plain RQ worker.", "Start one with `transfiner worker --queues train`."
        )
    return _learner.learn(project, run)


class TrainWorker(SimpleWorker):
    """Asked to stop, it ends the training's process, which keeps its state, and puts the round back."""

    log_result_lifespan = False
    is_asked_to_stop = False

    def handle_warm_shutdown_request(self) -> None:
        self.is_asked_to_stop = True
        if _learner is not None:
            _learner.is_stopping = True
        log.info("stopping; a training that runs is put back into the queue")


def run_train_worker(
    settings: Settings,
    *,
    label_studio: ProjectClient | None = None,
    programs: RoundPrograms | None = None,
    burst: bool = False,
) -> None:
    """Serve the queue `train` until SIGTERM or SIGINT. For the main thread of a process.

    Args:
        label_studio, programs: doubles, in tests.
        burst: end when nothing is waiting.
    """
    global _learner
    connection = worker_connection(settings)
    require_queue_server(connection, settings)
    name = f"train-{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
    side = label_studio or LabelStudioProject(settings, connection).side()
    _learner = learner = Learner(settings, connection, name, side, programs)
    watcher = Watcher(learner)
    trainer_heartbeat(connection, name)
    watcher.start()
    log.info("worker %s takes trainings; registry %s", name, settings.registry)
    try:
        # What the queue server forgot, the records in the registry still say: the watcher asks for it again.
        serve_queue(lambda: _worker(learner), connection, burst=burst, back=lambda: None)
    finally:
        watcher.stop.set()
        watcher.join(5)
        _say_goodbye(learner)
        _learner = None


def _worker(learner: Learner) -> TrainWorker:
    return TrainWorker(
        [learner.queue.queue],
        name=learner.worker,
        connection=learner.connection,
        serializer=JSONSerializer,
        log_job_description=False,
        worker_ttl=WORKER_TTL_S,
    )


def _say_goodbye(learner: Learner) -> None:
    try:
        forget_trainer(learner.connection, learner.worker)
    except redis.RedisError as error:
        log.warning("left without saying goodbye: %s", error)
