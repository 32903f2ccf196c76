"""Takes batches of waiting tasks, one in a round trip, and overlaps them.

While the network runs on one, the images of the next are fetched and the last is outlined:

    main thread      network 1 | network 2 | network 3
    fetch threads    images 2  | images 3  |
    writing thread             | regions 1 | regions 2 | regions 3

Torch releases the interpreter while it computes. Signals, and with them the time limit of a batch, reach the main
thread only. Interactive tasks belong to an interactive worker; where none lives, every other worker takes them between
its batches.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from redis import Redis
from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

from backend.errors import TaskError
from backend.queue.connection import load_script, text
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.keys import INTERACTIVE_LANE, INTERACTIVE_WORKERS, NAMES, PREDICT_LANE, WORKERS, running_key
from backend.queue.recovery import Heartbeat
from backend.settings import Settings
from backend.worker.images import FetchedImages
from backend.worker.task_runner import TaskRunner

log = logging.getLogger(__name__)
POLL_S = 0.002


@dataclass(frozen=True)
class Batch:
    """Tasks to be predicted together.

    Attributes:
        is_alone: it was there when a worker died; nothing else may be at hand, so that the killer is found.
    """

    jobs: dict[str, PredictionJob]
    is_alone: bool = False


class Batcher:
    """Batches for one worker, which answers for them with its signs of life from then on."""

    def __init__(self, queue: JobQueue, vitals: Heartbeat, settings: Settings, *, is_interactive: bool = False) -> None:
        self.queue = queue
        self.connection: Redis = queue.connection
        self.vitals = vitals
        self.limits = settings
        self.is_interactive = is_interactive
        self._script = load_script(self.connection, "take")

    def first(self) -> Batch | None:
        """A batch to begin with: the interactive task that waits longest, alone, else what waits and comes soon."""
        urgent = self.urgent()
        if urgent is not None or self.is_interactive:
            return urgent
        if self.limits.max_wait_ms and self.connection.llen(PREDICT_LANE):
            self._await_company()
        return self.next()

    def urgent(self) -> Batch | None:
        """The interactive task that waits longest; left to an interactive worker where one lives."""
        if not self.is_interactive and self.connection.exists(INTERACTIVE_WORKERS):
            return None
        return self._take(INTERACTIVE_LANE, 1)

    def next(self) -> Batch | None:
        """What waits, up to a whole batch; nothing for an interactive worker."""
        if self.is_interactive:
            return None
        return self._take(PREDICT_LANE, self.limits.max_batch)

    def ahead(self) -> Batch | None:
        """The same, to be prepared while another batch runs: not at the cost of workers that could run it now."""
        if self.is_interactive:
            return None
        most = self.limits.max_batch
        return self._take(PREDICT_LANE, most, left_to_each=most, may_be_alone=False)

    def _await_company(self) -> None:
        """Give others `max_wait_ms` to arrive."""
        give_up = time.monotonic() + self.limits.max_wait_ms / 1000
        while time.monotonic() < give_up and self.connection.llen(PREDICT_LANE) < self.limits.max_batch:
            time.sleep(POLL_S)

    def _take(self, lane: str, most: int, *, left_to_each: int = 0, may_be_alone: bool = True) -> Batch | None:
        """One round trip; see take.lua."""
        name = self.vitals.name
        is_alone, dropped, *taken = self._script(
            keys=[lane, running_key(name), WORKERS],
            args=[NAMES, name, time.time(), most, left_to_each, int(may_be_alone)],
        )
        for job_id in dropped:
            log.info("%s: nobody waits for it any more; dropped", text(job_id))
        if not taken:
            return None
        payloads = zip(map(text, taken[::2]), taken[1::2], strict=True)
        return Batch({job_id: self.queue.job_of(json.loads(payload)) for job_id, payload in payloads}, bool(is_alone))


@dataclass(frozen=True)
class _Begun:
    """A batch whose images are on their way."""

    batch: Batch
    images: FetchedImages


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

    def run(self, first: Batch | None) -> None:
        """Run `first` and all that waits.

        Raises:
            RedisError: the queue server went away; what was at hand is still listed as ours.
        """
        ahead = self._begin(first)
        try:
            while True:
                while self.may_go_on() and (urgent := self._begin(self.taking.urgent())):
                    self._compute(urgent)
                current = ahead or self._begin(self.taking.next() if self.may_go_on() else None)
                if current is None:
                    return
                ahead = None
                if current.batch.is_alone:
                    self._settle()
                elif self.may_go_on():
                    ahead = self._begin(self.taking.ahead())
                self._compute(current)
                if current.batch.is_alone:
                    self._settle()
        finally:
            self._settle()

    def _begin(self, batch: Batch | None) -> _Begun | None:
        return _Begun(batch, self.runner.fetcher.begin(batch.jobs)) if batch else None

    def _compute(self, begun: _Begun) -> None:
        """Images and network here, the rest in the writing thread once it has done the batch before."""
        batch = begun.batch
        try:
            with UnixSignalDeathPenalty(self.timeout_s, JobTimeoutException):
                predicted = self.runner.predict(batch.jobs, begun.images)
        except JobTimeoutException:
            self.runner.fail(batch.jobs, self._too_long())
            return
        self._settle()
        self._writing = batch, self._writer.submit(self.runner.write, predicted)

    def _settle(self) -> None:
        """Wait until the batch before is recorded."""
        if self._writing is None:
            return
        (batch, future), self._writing = self._writing, None
        try:
            future.result(self.timeout_s)
        except TimeoutError:
            if future.done():
                raise
            # The thread cannot be interrupted; it is left behind with what it does.
            self._writer.shutdown(wait=False)
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="regions")
            self.runner.fail(batch.jobs, self._too_long())

    def _too_long(self) -> TaskError:
        return TaskError(
            f"The batch took longer than {self.timeout_s} s.",
            "Raise TRANSFINER_BATCH_TIMEOUT_S or lower TRANSFINER_MAX_BATCH.",
        )
