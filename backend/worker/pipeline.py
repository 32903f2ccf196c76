"""Overlaps batches: while the network runs on one, the images of the next are fetched and the last is outlined.

    main thread      network 1 | network 2 | network 3
    fetch threads    images 2  | images 3  |
    writing thread             | regions 1 | regions 2 | regions 3

Torch releases the interpreter while it computes. Signals, and with them the time limit of a batch, reach the main
thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

from backend.errors import TaskError
from backend.worker.batcher import Batch, Batcher
from backend.worker.images import FetchedImages
from backend.worker.task_runner import TaskRunner

log = logging.getLogger(__name__)


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
