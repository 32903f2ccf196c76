"""The worker process: keeps the model warm and runs waiting tasks as overlapping batches until it is asked to stop.

The queue server may go away, restart, forget everything or be full: the loop waits until it is back, with what was
loaded still loaded and what was computed still kept.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from types import FrameType

import redis
from redis import Redis
from redis.client import Pipeline

from backend.errors import StartError
from backend.predictions.projects import Projects
from backend.queue.connection import require_queue_server, worker_connection
from backend.queue.job_queue import JobQueue
from backend.queue.job_store import FinishedJob
from backend.queue.keys import INTERACTIVE_NAME, INTERACTIVE_WORKERS, QUEUED_CHANNEL, STATS, running_key
from backend.queue.recovery import Heartbeat, absolve, requeue_jobs_of
from backend.settings import Settings
from backend.versions.resolve import prompt_version
from backend.worker.images import ImageSource
from backend.worker.maintenance import MaintenanceThread
from backend.worker.model_cache import WarmModels, load
from backend.worker.oom_fallback import Predictor
from backend.worker.pipeline import Batcher, BatchPipeline
from backend.worker.prompt_runner import PromptRunner
from backend.worker.task_runner import TaskRunner
from model.tiling import Tiling

log = logging.getLogger(__name__)
# An idle worker is woken when something is queued; it looks by itself this often, in s.
LOOK_S = 1.0
# Pauses between tries while the queue server is away or full, in s, doubling.
RETRY_S, LONGEST_RETRY_S = 0.25, 4.0
# A second signal within this time, in s, is the same one sent twice (by a terminal and a supervisor).
SAME_SIGNAL_S = 1.0


class StopSignal:
    """Whether this process was asked to end (SIGTERM, SIGINT); what is at hand is finished first.

    A second signal ends the process at once. For the main thread.
    """

    def __init__(self, also: Callable[[], object] = lambda: None) -> None:
        self.is_set = False
        self._also = also
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
    connected: Callable[[], object] = lambda: None,
) -> None:
    """Work until asked to stop, or with `burst` until nothing waits; a queue server that fails is waited for.

    Args:
        connected: called at the beginning and whenever the queue server answers again.
    """
    pause_s = RETRY_S
    while not stop.is_set:
        try:
            with connection.pubsub(ignore_subscribe_messages=True) as news:
                news.subscribe(QUEUED_CHANNEL)
                connected()
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
    """Hands what became of batches to the queue; keeps what the queue server did not take.

    Args:
        worker: name of the worker, which has nothing more to do with the tasks then.
    """

    def __init__(self, queue: JobQueue, worker: str) -> None:
        self.queue = queue
        self.worker = worker
        self._kept: list[tuple[Mapping[str, FinishedJob], Mapping[str, float]]] = []

    def record(self, ended: Mapping[str, FinishedJob], stages_s: Mapping[str, float]) -> None:
        """Store outcomes and figures of a batch in one round trip."""
        self._kept.append((ended, stages_s))
        self.flush()

    def flush(self) -> None:
        """Store what is kept, the oldest first."""
        while self._kept:
            ended, stages_s = self._kept[0]
            self._store(ended, stages_s)
            self._kept.pop(0)

    def _store(self, ended: Mapping[str, FinishedJob], stages_s: Mapping[str, float]) -> None:
        def also(pipe: Pipeline) -> None:
            pipe.srem(running_key(self.worker), *ended)
            pipe.hincrby(STATS, "batches", 1)
            pipe.hincrby(STATS, "batch_tasks", len(ended))
            for stage, seconds in stages_s.items():
                pipe.hincrbyfloat(STATS, f"stage_{stage}", seconds)
            for figure in ("instances", "seconds"):
                pipe.hincrbyfloat(STATS, figure, sum(job.facts[figure] for job in ended.values()))

        self.queue.records.finish_all(ended, also)


def run_worker(
    settings: Settings,
    load: Callable[[Settings], Predictor] = load,
    *,
    burst: bool = False,
    is_interactive: bool = False,
) -> None:
    """Serve jobs until SIGTERM or SIGINT, which finish the batch at hand. For the main thread of a process.

    Args:
        load: builds the predictor of the settings' checkpoint directory; another one in tests of the queue's mechanics.
        is_interactive: answer prompts only, with the promptable model alone, so that none waits behind a batch.

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
    maintenance = MaintenanceThread(queue, vitals, settings, runner.loaded, pushes=not is_interactive)

    def work() -> bool:
        batch = batcher.first()
        if batch is not None:
            pipeline.run(batch)
        return batch is not None

    def take_stock() -> None:
        """What was computed is stored; what was taken in a call whose answer was lost is queued again."""
        recorder.flush()
        requeue_jobs_of(queue, name)
        absolve(queue, name)

    maintenance.start()
    log.info("worker %s serves %s", name, runner.loaded.version)
    try:
        serve_queue(work, connection, stop, burst=burst, connected=take_stock)
        take_stock()
    except redis.RedisError as error:
        log.warning("left without saying goodbye: %s", error)
    finally:
        maintenance.end()
        # What is still listed as running, after an error, is taken over by others as from a dead worker.
        try:
            vitals.leave()
        except redis.RedisError as error:
            log.warning("left without saying goodbye: %s", error)


def _runner(
    settings: Settings, queue: JobQueue, recorder: Recorder, load: Callable[[Settings], Predictor], is_interactive: bool
) -> TaskRunner:
    """What runs tasks, with its models warm."""
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
        StartError: it cannot be loaded, and nothing can be done without.
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
