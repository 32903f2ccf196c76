"""The worker process: keeps the model loaded and runs batches of waiting tasks, overlapped, until it is asked to stop.

While the network runs on one batch, the images of the next are fetched and the last is outlined:

    main thread      network 1 | network 2 | network 3
    fetch threads    images 2  | images 3  |
    writing thread             | regions 1 | regions 2 | regions 3

Torch releases the interpreter while it computes. Signals, and with them the time limit of a batch, reach the main
thread only. Interactive tasks belong to an interactive worker; where none lives, every other worker takes them between
its batches. The queue server may go away, restart, lose its data or be full: the loop waits until it is back, and keeps
its models and the outcomes that are not stored yet.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import FrameType

import redis
from redis import Redis
from redis.client import Pipeline
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

from backend.errors import StartError, TaskError
from backend.predictions.projects import Projects
from backend.queue.connection import load_script, require_queue_server, text, worker_connection
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.job_store import FinishedJob
from backend.queue.keys import (
    INTERACTIVE_LANE,
    INTERACTIVE_NAME,
    INTERACTIVE_WORKERS,
    NAMES,
    PREDICT_LANE,
    QUEUED_CHANNEL,
    RUNNING,
    STATS,
    WORKERS,
)
from backend.queue.recovery import Heartbeat, absolve, requeue_jobs_of
from backend.settings import Settings
from backend.versions.resolve import prompt_version
from backend.worker.images import FetchedImages, ImageSource
from backend.worker.maintenance import MaintenanceThread
from backend.worker.model_cache import Predictor, WarmModels, load
from backend.worker.prompt_runner import PromptRunner
from backend.worker.task_runner import TaskRunner
from model.inference.tiling import Tiling

log = logging.getLogger(__name__)
POLL_S = 0.002


@dataclass(frozen=True)
class Batch:
    """Tasks to be predicted together.

    Attributes:
        is_alone: its task was running when a worker died. Nothing else runs with it, so that a task that kills workers
            is identified.
    """

    jobs: dict[str, PredictionJob]
    is_alone: bool = False


class Batcher:
    """Takes batches for one worker, whose heartbeat covers them from then on."""

    def __init__(self, queue: JobQueue, vitals: Heartbeat, settings: Settings, *, is_interactive: bool = False) -> None:
        self.queue = queue
        self.connection: Redis = queue.connection
        self.vitals = vitals
        self.limits = settings
        self.is_interactive = is_interactive
        self._script = load_script(self.connection, "take")

    def first(self) -> Batch | None:
        """Take a first batch: the interactive task that waits longest, alone, else a batch of waiting tasks."""
        urgent = self.urgent()
        if urgent is not None or self.is_interactive:
            return urgent
        if self.limits.max_wait_ms and self.connection.llen(PREDICT_LANE):
            self._await_company()
        return self.next()

    def urgent(self) -> Batch | None:
        """Take the interactive task that waits longest; None while an interactive worker lives."""
        if not self.is_interactive and self.connection.exists(INTERACTIVE_WORKERS):
            return None
        return self._take(INTERACTIVE_LANE, 1)

    def next(self) -> Batch | None:
        """Take waiting tasks, up to a whole batch; None for an interactive worker."""
        if self.is_interactive:
            return None
        return self._take(PREDICT_LANE, self.limits.max_batch)

    def ahead(self) -> Batch | None:
        """Take a batch to prepare while another runs; one is left for each other worker, which could run it now."""
        if self.is_interactive:
            return None
        limit = self.limits.max_batch
        return self._take(PREDICT_LANE, limit, left_to_each=limit, may_be_alone=False)

    def _await_company(self) -> None:
        """Wait up to `max_wait_ms` for a full batch."""
        give_up = time.monotonic() + self.limits.max_wait_ms / 1000
        while time.monotonic() < give_up and self.connection.llen(PREDICT_LANE) < self.limits.max_batch:
            time.sleep(POLL_S)

    def _take(self, lane: str, limit: int, *, left_to_each: int = 0, may_be_alone: bool = True) -> Batch | None:
        """Take tasks of a lane in one round trip; see take.lua."""
        name = self.vitals.name
        is_alone, dropped_ids, *id_payload_pairs = self._script(
            keys=[lane, RUNNING + name, WORKERS],
            args=[NAMES, name, time.time(), limit, left_to_each, int(may_be_alone)],
        )
        for job_id in dropped_ids:
            log.info("%s: nobody waits for it any more; dropped", text(job_id))
        if not id_payload_pairs:
            return None
        payloads = zip(map(text, id_payload_pairs[::2]), id_payload_pairs[1::2], strict=True)
        return Batch({job_id: self.queue.job_of(json.loads(payload)) for job_id, payload in payloads}, bool(is_alone))


#: A batch whose images are being fetched.
Begun = tuple[Batch, FetchedImages]


class BatchPipeline:
    """Runs batches until nothing waits.

    Args:
        timeout_s: of one batch before it is outlined, and of its outlining.
    """

    def __init__(self, taking: Batcher, runner: TaskRunner, *, may_go_on: Callable[[], bool], timeout_s: int) -> None:
        self.taking = taking
        self.runner = runner
        self.may_go_on = may_go_on
        self.timeout_s = timeout_s
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="regions")
        self._writing: tuple[Batch, Future[None]] | None = None

    def run(self, first_batch: Batch | None) -> None:
        """Run `first_batch` and every batch that waits.

        Raises:
            RedisError: the queue server went away; unfinished tasks are still listed as ours.
        """
        next_batch = self._begin(first_batch)
        try:
            while True:
                while self.may_go_on() and (urgent := self._begin(self.taking.urgent())):
                    self._compute(urgent)
                current = next_batch or self._begin(self.taking.next() if self.may_go_on() else None)
                if current is None:
                    return
                next_batch = None
                is_alone = current[0].is_alone
                if is_alone:
                    self._settle()
                elif self.may_go_on():
                    next_batch = self._begin(self.taking.ahead())
                self._compute(current)
                if is_alone:
                    self._settle()
        finally:
            self._settle()

    def _begin(self, batch: Batch | None) -> Begun | None:
        return (batch, self.runner.fetcher.begin(batch.jobs)) if batch else None

    def _compute(self, begun: Begun) -> None:
        """Wait for images and run the network here; the writing thread does the rest after the batch before."""
        batch, images = begun
        try:
            with UnixSignalDeathPenalty(self.timeout_s, JobTimeoutException):
                predicted_batch = self.runner.predict(batch.jobs, images)
        except JobTimeoutException:
            self.runner.fail(batch.jobs, self._too_long())
            return
        self._settle()
        self._writing = batch, self._writer.submit(self.runner.write, predicted_batch)

    def _settle(self) -> None:
        """Wait until the previous batch is recorded."""
        if self._writing is None:
            return
        (batch, future), self._writing = self._writing, None
        try:
            future.result(self.timeout_s)
        except TimeoutError:
            if future.done():
                raise
            # The thread cannot be interrupted; it is abandoned with its work.
            self._writer.shutdown(wait=False)
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="regions")
            self.runner.fail(batch.jobs, self._too_long())

    def _too_long(self) -> TaskError:
        return TaskError(
            f"The batch took longer than {self.timeout_s} s.",
            "Raise TRANSFINER_BATCH_TIMEOUT_S or lower TRANSFINER_MAX_BATCH.",
        )


# An idle worker is woken when something is queued; it looks by itself this often, in s.
LOOK_S = 1.0
# Pauses between tries while the queue server is away or full, in s, doubling.
RETRY_S, LONGEST_RETRY_S = 0.25, 4.0
# A second signal within this time, in s, is the same one sent twice (by a terminal and a supervisor).
SAME_SIGNAL_S = 1.0


class StopSignal:
    """Whether this process was asked to end (SIGTERM, SIGINT); current batches are finished first.

    A second signal ends the process at once. For the main thread.
    """

    def __init__(self, on_stop: Callable[[], object] = lambda: None) -> None:
        self.is_set = False
        self._also = on_stop
        self._asked_at = 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self.is_set and time.monotonic() - self._asked_at > SAME_SIGNAL_S:
            raise SystemExit(1)
        if not self.is_set:
            self.is_set, self._asked_at = True, time.monotonic()
            log.info("stopping after what is at hand")
            self._also()


def serve_queue(
    work: Callable[[], bool],
    connection: Redis,
    stop: StopSignal,
    *,
    burst: bool = False,
    on_connect: Callable[[], object] = lambda: None,
) -> None:
    """Work until asked to stop, or with `burst` until nothing waits; wait while the queue server is away.

    Args:
        work: does one piece of work; False when nothing waits.
        on_connect: called at the beginning and whenever the queue server answers again.
    """
    pause_s = RETRY_S
    while not stop.is_set:
        try:
            with connection.pubsub(ignore_subscribe_messages=True) as news:
                news.subscribe(QUEUED_CHANNEL)
                on_connect()
                while not stop.is_set:
                    if work():
                        pause_s = RETRY_S
                    elif burst:
                        return
                    else:
                        news.get_message(timeout=LOOK_S)
        except redis.OutOfMemoryError as error:
            log.error("the queue server is full; waiting until it has room, nothing is lost: %s", error)
        except redis.RedisError as error:
            log.warning("the queue server went away; waiting until it is back: %s", error)
        wake_at = time.monotonic() + pause_s
        while not stop.is_set and time.monotonic() < wake_at:
            time.sleep(min(RETRY_S, pause_s))
        pause_s = min(pause_s * 2, LONGEST_RETRY_S)


class Recorder:
    """Stores the outcomes of batches in the queue; keeps those that could not be stored, for the next try.

    Args:
        worker: name of the worker; stored tasks are removed from its list of running ones.
    """

    def __init__(self, queue: JobQueue, worker: str) -> None:
        self.queue = queue
        self.worker = worker
        self._unstored: list[tuple[Mapping[str, FinishedJob], Mapping[str, float]]] = []

    def record(self, finished_jobs: Mapping[str, FinishedJob], stages_s: Mapping[str, float]) -> None:
        """Store outcomes and figures of a batch in one round trip."""
        self._unstored.append((finished_jobs, stages_s))
        self.flush()

    def flush(self) -> None:
        """Store the outcomes that are kept, the oldest first."""
        while self._unstored:
            finished_jobs, stages_s = self._unstored[0]
            self._store(finished_jobs, stages_s)
            self._unstored.pop(0)

    def _store(self, finished_jobs: Mapping[str, FinishedJob], stages_s: Mapping[str, float]) -> None:
        def also(pipe: Pipeline) -> None:
            pipe.srem(RUNNING + self.worker, *finished_jobs)
            pipe.hincrby(STATS, "batches", 1)
            pipe.hincrby(STATS, "batch_tasks", len(finished_jobs))
            for stage, seconds in stages_s.items():
                pipe.hincrbyfloat(STATS, f"stage_{stage}", seconds)
            for figure in ("instances", "seconds"):
                pipe.hincrbyfloat(STATS, figure, sum(job.facts[figure] for job in finished_jobs.values()))

        self.queue.records.finish_all(finished_jobs, also)


def run_worker(
    settings: Settings,
    load: Callable[[Settings], Predictor] = load,
    *,
    burst: bool = False,
    is_interactive: bool = False,
) -> None:
    """Serve jobs until SIGTERM or SIGINT; the current batch is finished. For the main thread of a process.

    Args:
        load: builds the predictor of the settings' checkpoint directory; tests of the queue give another one.
        is_interactive: answer prompts only, with the promptable model alone, so that no prompt waits behind a batch.

    Raises:
        StartError: no queue server, or a model that cannot be loaded.
    """
    connection: Redis = worker_connection(settings)
    require_queue_server(connection, settings)
    name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
    name = INTERACTIVE_NAME + name if is_interactive else name
    queue = JobQueue(connection, settings)
    recorder = Recorder(queue, name)
    runner = _runner(settings, queue, recorder, load, is_interactive)
    vitals = Heartbeat(connection, name, lost_after_s=settings.worker_lost_s)
    batcher = Batcher(queue, vitals, settings, is_interactive=is_interactive)
    stop = StopSignal()
    pipeline = BatchPipeline(batcher, runner, may_go_on=lambda: not stop.is_set, timeout_s=settings.batch_timeout_s)
    maintenance = MaintenanceThread(queue, vitals, settings, runner.warm_models, pushes=not is_interactive)

    def work() -> bool:
        batch = batcher.first()
        if batch is not None:
            pipeline.run(batch)
        return batch is not None

    def take_stock() -> None:
        """Store outcomes that are kept, and queue tasks again whose taking was lost with the connection."""
        recorder.flush()
        requeue_jobs_of(queue, name)
        absolve(queue, name)

    maintenance.start()
    log.info("worker %s serves %s", name, runner.warm_models.version)
    try:
        serve_queue(work, connection, stop, burst=burst, on_connect=take_stock)
        take_stock()
    except redis.RedisError as error:
        log.warning("left without saying goodbye: %s", error)
    finally:
        maintenance.end()
        # After an error, tasks still listed as running are taken over by others as from a dead worker.
        try:
            vitals.leave()
        except redis.RedisError as error:
            log.warning("left without saying goodbye: %s", error)


def _runner(
    settings: Settings, queue: JobQueue, recorder: Recorder, load: Callable[[Settings], Predictor], is_interactive: bool
) -> TaskRunner:
    """Build the task runner, with its models loaded."""
    images = ImageSource(settings, Projects(queue.connection))
    prompts = PromptRunner(settings) if prompt_version(settings) or is_interactive else None
    if prompts and (is_interactive or not queue.connection.exists(INTERACTIVE_WORKERS)):
        _warm(prompts, is_interactive)
    return TaskRunner(
        None if is_interactive else WarmModels(settings, load),
        images.fetch,
        recorder.record,
        tiling=Tiling(settings.tile_above_px, settings.tile_px, settings.tile_overlap_px),
        tile_batch=settings.max_batch,
        prompts=prompts,
    )


def _warm(prompts: PromptRunner, is_needed: bool) -> None:
    """Load the promptable model before the first prompt.

    Raises:
        StartError: it cannot be loaded, and this worker needs it.
    """
    if is_needed:
        import torch

        # Beside a batch two threads wait for each other's processor: a later prompt took 193 ms in place of 149.
        torch.set_num_threads(1)
    try:
        prompts.warm()
    except (ValueError, OSError) as error:
        if is_needed:
            raise StartError(
                f"The promptable model in {prompts.settings.prompt_model} cannot be loaded: {error}.",
                "Set TRANSFINER_PROMPT_MODEL to a checkpoint with a promptable network.",
            ) from error
        log.error("the promptable model cannot be loaded (%s); prompts are answered with the reason", error)
