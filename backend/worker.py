"""An in-process RQ worker that keeps the model warm and runs waiting jobs as one batch."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import redis
from redis import Redis
from rq import Queue, SimpleWorker
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException

from backend.companion import Companion
from backend.connection import worker_connection
from backend.errors import TaskError
from backend.image_source import ImageSource
from backend.jobs import INTERACTIVE_QUEUE, JobQueue, PredictionJob
from backend.orphans import Vitals, adopt_from
from backend.predictor import Predictor
from backend.projects import Projects
from backend.queue_loop import WORKER_TTL_S, serve_queue
from backend.records import STATS, Outcome
from backend.settings import Settings
from backend.tasks import TaskRunner, use_runner
from backend.warm_model import WarmModels, load
from model.tiling import Tiling

log = logging.getLogger(__name__)


class BatchWorker(SimpleWorker):
    """Takes one job as RQ does, then drains what else is waiting, and predicts all of it together.

    RQ keeps its books per job: each is started, performed (which only picks its outcome up) and finished.
    """

    log_result_lifespan = False

    def __init__(self, queue: JobQueue, runner: TaskRunner, vitals: Vitals, settings: Settings) -> None:
        super().__init__(
            [queue.interactive, queue.predict],
            name=vitals.name,
            connection=queue.connection,
            serializer=JSONSerializer,
            log_job_description=False,
            worker_ttl=WORKER_TTL_S,
        )
        self.is_asked_to_stop = False
        self.jobs = queue
        self.runner = runner
        self.vitals = vitals
        self.limits = settings

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run `job` with others that are waiting."""
        batch = [(job, queue, self.prepare_execution(job))]
        if queue.name != INTERACTIVE_QUEUE and not self._has_failed_before(job):
            self._fill(batch)
        self._run(batch)
        for member, lane, execution in batch:
            self.perform_job(member, lane, execution)
        self.vitals.running(())
        self.set_state("idle")

    def _has_failed_before(self, job: Job) -> bool:
        """A task that was there when a worker died runs alone, to find out which of a batch is the killer."""
        return bool(int(self.connection.hget(f"transfiner:task:{job.id}", "attempts") or 0))

    def _fill(self, batch: list[tuple[Job, Queue, Execution]]) -> None:
        """Add waiting jobs up to `max_batch`, giving them `max_wait_ms` to arrive."""
        give_up = time.monotonic() + self.limits.max_wait_ms / 1000
        while len(batch) < self.limits.max_batch:
            taken = self.queue_class.dequeue_any(
                [self.jobs.predict], None, connection=self.connection, job_class=self.job_class,
                serializer=self.serializer, death_penalty_class=self.death_penalty_class,
            )  # fmt: skip
            if taken is not None:
                batch.append((*taken, self.prepare_execution(taken[0])))
            elif time.monotonic() >= give_up:
                return
            else:
                time.sleep(0.002)

    def _run(self, batch: list[tuple[Job, Queue, Execution]]) -> None:
        jobs = {job.id: PredictionJob.from_payload(job.args[0]) for job, _, _ in batch}
        self.vitals.running(jobs)
        # Another worker may have finished one of them while it was believed lost.
        ended = self.jobs.records.outcomes(list(jobs))
        fresh = {job_id: job for job_id, job in jobs.items() if job_id not in ended}
        self.runner.outcomes = dict(ended)
        self.jobs.records.start(fresh, self.name)
        try:
            with self.death_penalty_class(self.limits.batch_timeout_s, JobTimeoutException):
                if fresh:
                    self.runner.run(fresh)
        except JobTimeoutException:
            error = f"The batch took longer than {self.limits.batch_timeout_s} s."
            for job_id in fresh.keys() - self.runner.outcomes.keys():
                outcome = Outcome(
                    error=error, hint="Raise TRANSFINER_BATCH_TIMEOUT_S or lower TRANSFINER_MAX_BATCH."
                )
                self.runner.outcomes[job_id] = outcome
                self.jobs.records.finish(job_id, outcome)
        self.connection.hincrby(STATS, "batches", 1)
        self.connection.hincrby(STATS, "batch_tasks", len(batch))

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """A task that failed with a reason is one line in the log, not a traceback."""
        if isinstance(exc_info[1], TaskError):
            log.warning("%s failed: %s", job.id, exc_info[1])
        else:
            super().handle_exception(job, *exc_info)

    def handle_warm_shutdown_request(self) -> None:
        self.is_asked_to_stop = True
        log.info("stopping after the batch at hand")


def run_worker(
    settings: Settings, load: Callable[[Settings], Predictor] = load, *, burst: bool = False
) -> None:
    """Serve jobs until SIGTERM or SIGINT, which finish the batch at hand. For the main thread of a process.

    Args:
        load: builds the predictor of the settings' checkpoint directory; another one in tests of the queue's mechanics.
        burst: end when nothing is waiting.
    """
    connection: Redis = worker_connection(settings)
    models = WarmModels(settings, load)
    queue = JobQueue(connection, settings)
    name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
    vitals = Vitals(connection, name, lost_after_s=settings.worker_lost_s)
    source = ImageSource(settings, Projects(connection))
    runner = TaskRunner(
        models, source.fetch, lambda *ended: _finish(queue, *ended),
        tiling=Tiling(settings.tile_above_px, settings.tile_px, settings.tile_overlap_px),
        tile_batch=settings.max_batch, measured=lambda stages: _measure(queue, stages),
    )  # fmt: skip
    use_runner(runner)
    companion = Companion(queue, vitals, settings, models)
    companion.start()
    log.info("worker %s serves %s", name, models.version)
    try:
        serve_queue(
            lambda: BatchWorker(queue, runner, vitals, settings), connection, burst=burst,
            back=lambda: adopt_from(queue, name),
        )  # fmt: skip
    finally:
        companion.end()
        try:
            vitals.leave()
        except redis.RedisError as error:
            log.warning("left without saying goodbye: %s", error)


def _finish(queue: JobQueue, job_id: str, outcome: Outcome, figures: Mapping[str, float]) -> None:
    queue.records.finish(job_id, outcome, facts=figures)
    with queue.connection.pipeline(transaction=False) as pipe:
        pipe.hincrby(STATS, "instances", int(figures["instances"]))
        pipe.hincrbyfloat(STATS, "seconds", figures["seconds"])
        pipe.execute()


def _measure(queue: JobQueue, stages: Mapping[str, float]) -> None:
    with queue.connection.pipeline(transaction=False) as pipe:
        for stage, seconds in stages.items():
            pipe.hincrbyfloat(STATS, f"stage_{stage}", seconds)
        pipe.execute()
