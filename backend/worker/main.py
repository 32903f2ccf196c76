"""RQ's loop ends when the queue server goes away; ours waits until it is back, with what was loaded still loaded.

An in-process RQ worker that keeps the model warm and runs waiting jobs as overlapping batches.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import redis
from redis import Redis
from redis.client import Pipeline
from rq import Queue, SimpleWorker
from rq.exceptions import StopRequested
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus

from backend.predictions.projects import Projects
from backend.queue.connection import WORKER_BLOCK_S, require_queue_server, worker_connection
from backend.queue.job_queue import JobQueue
from backend.queue.job_store import STATS, FinishedJob
from backend.queue.recovery import Heartbeat, requeue_jobs_of, running_key
from backend.settings import Settings
from backend.worker.batcher import Batcher
from backend.worker.images import ImageSource
from backend.worker.maintenance import MaintenanceThread
from backend.worker.model_cache import WarmModels, load
from backend.worker.pipeline import BatchPipeline
from backend.worker.predictor import Predictor
from backend.worker.task_runner import TaskRunner
from model.tiling import Tiling

log = logging.getLogger(__name__)
RECONNECT_S = 0.5
# RQ blocks on the queue for this many seconds less 15, which our connection's own timeout must outlast.
WORKER_TTL_S = WORKER_BLOCK_S + 15


class LoopWorker(Protocol):
    """The part of an RQ worker that is used here."""

    is_asked_to_stop: bool

    def work(self, *, burst: bool, logging_level: str) -> bool: ...


def serve_queue(
    make_worker: Callable[[], LoopWorker], connection: redis.Redis, *, burst: bool, back: Callable[[], object]
) -> None:
    """Work until asked to stop, or with `burst` until nothing waits.

    Args:
        make_worker: a fresh worker for each stretch between losses of the queue server.
        back: called when the queue server has come back.
    """
    while True:
        try:
            worker = make_worker()
            worker.work(burst=burst, logging_level="WARNING")
            if burst or worker.is_asked_to_stop:
                return
        except StopRequested:
            return
        except redis.RedisError as error:
            log.warning("the queue server went away: %s", error)
        _await_queue_server(connection)
        back()


def _await_queue_server(connection: redis.Redis) -> None:
    while True:
        try:
            connection.ping()
            return
        except redis.RedisError:
            time.sleep(RECONNECT_S)


# RQ hears from a worker this often, in s; it waits for more than a minute.
HEARTBEAT_S = 10.0


class BatchWorker(SimpleWorker):
    """Waits for a job as RQ does, then runs it and all that waits behind it in batches.

    RQ brings the jobs and lists the failed ones. What runs is in our own records, which every job's outcome goes to;
    RQ's books of a job (five round trips) would say the same again.
    """

    log_result_lifespan = False

    def __init__(self, taking: Batcher, runner: TaskRunner, settings: Settings) -> None:
        super().__init__(
            [taking.queue.interactive, taking.queue.predict],
            name=taking.vitals.name,
            connection=taking.connection,
            serializer=JSONSerializer,
            log_job_description=False,
            worker_ttl=WORKER_TTL_S,
        )
        self.is_asked_to_stop = False
        self._beat_again_at = 0.0
        self.taking = taking
        self.stretch = BatchPipeline(taking, runner, may_go_on=self._may_go_on, timeout_s=settings.batch_timeout_s)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run `job` and what else is waiting."""
        # RQ ends an idle worker in the middle of what it does, a busy one when it is done.
        self.set_state(WorkerStatus.BUSY)
        self.stretch.run(self.taking.first(job.id, queue))
        self.set_state(WorkerStatus.IDLE)

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """For RQ's books, which it would write four times a task; `orphans.Vitals` are what counts."""
        if pipeline is not None or time.monotonic() > self._beat_again_at:
            super().heartbeat(timeout, pipeline)
            self._beat_again_at = time.monotonic() + HEARTBEAT_S

    def _may_go_on(self) -> bool:
        self.heartbeat()
        return not self.is_asked_to_stop

    def handle_warm_shutdown_request(self) -> None:
        self.is_asked_to_stop = True
        log.info("stopping after the batches at hand")


def run_worker(settings: Settings, load: Callable[[Settings], Predictor] = load, *, burst: bool = False) -> None:
    """Serve jobs until SIGTERM or SIGINT, which finish the batch at hand. For the main thread of a process.

    Args:
        load: builds the predictor of the settings' checkpoint directory; another one in tests of the queue's mechanics.
        burst: end when nothing is waiting.
    """
    connection: Redis = worker_connection(settings)
    require_queue_server(connection, settings)
    models = WarmModels(settings, load)
    queue = JobQueue(connection, settings)
    name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
    vitals = Heartbeat(connection, name, lost_after_s=settings.worker_lost_s)
    source = ImageSource(settings, Projects(connection))
    runner = TaskRunner(
        models,
        source.fetch,
        lambda ended, stages_s: _record(queue, name, ended, stages_s),
        tiling=Tiling(settings.tile_above_px, settings.tile_px, settings.tile_overlap_px),
        tile_batch=settings.max_batch,
    )
    taking = Batcher(queue, vitals, settings)
    companion = MaintenanceThread(queue, vitals, settings, models)
    companion.start()
    log.info("worker %s serves %s", name, models.version)
    try:
        serve_queue(
            lambda: BatchWorker(taking, runner, settings),
            connection,
            burst=burst,
            back=lambda: requeue_jobs_of(queue, name),
        )
    finally:
        companion.end()
        try:
            vitals.leave()
        except redis.RedisError as error:
            log.warning("left without saying goodbye: %s", error)


def _record(queue: JobQueue, worker: str, ended: Mapping[str, FinishedJob], stages_s: Mapping[str, float]) -> None:
    """All about a batch in one round trip: outcomes, figures, and that this worker has nothing more to do with it."""
    good = [job_id for job_id, one in ended.items() if one.outcome.prediction is not None]

    def also(pipe: Pipeline) -> None:
        pipe.srem(running_key(worker), *ended)
        if good:
            pipe.delete(*(Job.key_for(job_id) for job_id in good))
        pipe.hincrby(STATS, "batches", 1)
        pipe.hincrby(STATS, "batch_tasks", len(ended))
        for stage, seconds in stages_s.items():
            pipe.hincrbyfloat(STATS, f"stage_{stage}", seconds)
        for figure in ("instances", "seconds"):
            pipe.hincrbyfloat(STATS, figure, sum(one.facts[figure] for one in ended.values()))

    queue.records.finish_all(ended, also)
    for job_id in ended.keys() - set(good):
        _list_failed(queue, job_id, ended[job_id].outcome.error)


def _list_failed(queue: JobQueue, job_id: str, reason: str) -> None:
    """For people who look into RQ: the job among the failed ones, with the reason."""
    log.warning("%s failed: %s", job_id, reason)
    for lane in (queue.predict, queue.interactive):
        job = lane.fetch_job(job_id)
        if job is not None:
            with queue.connection.pipeline() as pipe:
                job.set_status(JobStatus.FAILED, pipeline=pipe)
                lane.failed_job_registry.add(job, ttl=queue.settings.result_ttl_s, exc_string=reason, pipeline=pipe)
                pipe.execute()
            return
