"""The queue and its workers, event by event, as backend/worker.py, taking.py and stretch.py run them.

    idle worker      is handed the first waiting task (interactive ones first), takes company up to a batch, which it
                     gives `max_wait_s` to arrive, and begins a stretch
    in a stretch     before each batch an interactive task overtakes, alone; while the network runs on a batch, the
                     images of the next are fetched (taken only when enough wait for the other workers, too) and what
                     was found in the last is outlined
    nothing waits    the last outlines are recorded; the worker is idle again

Each batch takes what a measured batch of its size took. A heap of events is all that is needed: what a library for
simulation (SimPy) would add, processes as generators and queues as resources, has no counterpart of a worker that takes
batches ahead and leaves some to others, and would make a day of 100,000 tasks several times slower and the program one
dependency heavier. The tests hold it against queueing theory instead.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from backend.capacity.arrivals import Arrivals
from backend.capacity.batch_times import BatchTime, BatchTimes


@dataclass(frozen=True)
class Rules:
    """Settings of the workers.

    Attributes:
        max_batch, max_wait_s: TRANSFINER_MAX_BATCH and TRANSFINER_MAX_WAIT_MS.
        takes_ahead: as ours do; without, this is a textbook's queue.
    """

    workers: int
    max_batch: int
    max_wait_s: float = 0.0
    takes_ahead: bool = True


@dataclass(frozen=True)
class Course:
    """What happened to N tasks in B batches.

    Attributes:
        begun_s: (N,) when a worker turned to the task's batch.
        ended_s: (N,) when its outcome was recorded.
        batches: (B, 3) from when until when it held a worker, in s, and its tasks.
    """

    begun_s: np.ndarray
    ended_s: np.ndarray
    batches: np.ndarray


@dataclass(slots=True)
class _Taken:
    """Tasks that a worker answers for, since `at_s`."""

    tasks: list[int]
    at_s: float
    time: BatchTime


@dataclass(slots=True)
class _Worker:
    """One worker.

    Attributes:
        company: what it has gathered while it waits for more; None when it does not.
        written_s: when the outlines of its last batch are recorded.
    """

    ahead: _Taken | None = None
    company: list[int] | None = None
    written_s: float = 0.0


@dataclass
class Simulation:
    """One course of events; the same for the same seed."""

    arrivals: Arrivals
    times: BatchTimes
    rules: Rules
    seed: int = 0
    _events: list[tuple[float, int, Callable[[_Worker, float], None], _Worker]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.rules.max_batch > self.times.largest:
            raise ValueError(
                f"batches of {self.rules.max_batch} tasks were not measured, the largest were of {self.times.largest}"
            )
        self._random = random.Random(self.seed)
        self._interactive: deque[int] = deque()
        self._predict: deque[int] = deque()
        self._idle = deque(_Worker() for _ in range(self.rules.workers))
        self._gathering: list[_Worker] = []
        self._number = 0
        self._begun_s = [0.0] * len(self.arrivals.at_s)
        self._ended_s = [0.0] * len(self.arrivals.at_s)
        self._batches: list[tuple[float, float, int]] = []

    def run(self) -> Course:
        """Until the last task that arrives is recorded."""
        is_interactive = self.arrivals.is_interactive.tolist()
        at_s = self.arrivals.at_s.tolist()
        first = 0
        for behind in self.arrivals.request_ends():
            self._pass_time(at_s[first])
            lane = self._interactive if is_interactive[first] else self._predict
            lane.extend(range(first, behind))
            self._hand_out(at_s[first])
            first = behind
        self._pass_time(float("inf"))
        return Course(
            np.array(self._begun_s), np.array(self._ended_s), np.array(self._batches).reshape(-1, 3)
        )

    def _pass_time(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            now, _, act, worker = heapq.heappop(self._events)
            act(worker, now)

    def _at(self, when_s: float, act: Callable[[_Worker, float], None], worker: _Worker) -> None:
        self._number += 1
        heapq.heappush(self._events, (when_s, self._number, act, worker))

    def _hand_out(self, now: float) -> None:
        """The queue server serves those that wait for it first, each with one task; then others look for company."""
        handed = []
        while self._idle and (self._interactive or self._predict):
            handed.append((self._idle.popleft(), *self._longest_waiting()))
        for worker, task, is_alone in handed:
            self._start(worker, task, is_alone, now)
        for worker in list(self._gathering):
            assert worker.company is not None
            worker.company += self._take(self.rules.max_batch - len(worker.company))
            if len(worker.company) == self.rules.max_batch:
                self._gathered(worker, now)

    def _longest_waiting(self) -> tuple[int, bool]:
        """A task, and whether it stays alone."""
        is_interactive = bool(self._interactive)
        return (self._interactive if is_interactive else self._predict).popleft(), is_interactive

    def _take(self, count: int, spare: int = 0) -> list[int]:
        count = min(count, len(self._predict) - spare)
        return [self._predict.popleft() for _ in range(count)]

    def _start(self, worker: _Worker, task: int, is_alone: bool, now: float) -> None:
        """A stretch that begins with a task already taken."""
        company = [task] if is_alone else [task, *self._take(self.rules.max_batch - 1)]
        if is_alone or not self.rules.max_wait_s or len(company) == self.rules.max_batch:
            worker.ahead = self._begin(company, now)
            self._go_on(worker, now)
            return
        worker.company = company
        self._gathering.append(worker)
        self._at(now + self.rules.max_wait_s, lambda one, at_s: self._gathered(one, at_s, company), worker)

    def _gathered(self, worker: _Worker, now: float, company: list[int] | None = None) -> None:
        """Enough, or no more time. `company`: whose time is over; it may have been complete long ago."""
        if worker.company is None or (company is not None and worker.company is not company):
            return
        worker.ahead, worker.company = self._begin(worker.company, now), None
        self._gathering.remove(worker)
        self._go_on(worker, now)

    def _begin(self, tasks: list[int], now: float) -> _Taken:
        return _Taken(tasks, now, self.times.draw(len(tasks), self._random.random()))

    def _go_on(self, worker: _Worker, now: float) -> None:
        """What a worker does whenever its network is free."""
        if self._interactive:
            self._compute(worker, self._begin([self._interactive.popleft()], now), now)
            return
        current, worker.ahead = worker.ahead, None
        if current is None:
            tasks = self._take(self.rules.max_batch)
            if not tasks:
                self._at(max(now, worker.written_s), self._rest, worker)
                return
            current = self._begin(tasks, now)
        if self.rules.takes_ahead:
            spare = (self.rules.workers - 1) * self.rules.max_batch
            tasks = self._take(self.rules.max_batch, spare)
            worker.ahead = self._begin(tasks, now) if tasks else None
        self._compute(worker, current, now)

    def _compute(self, worker: _Worker, batch: _Taken, now: float) -> None:
        """Images and network; the outlines go to the writing thread when it has done the batch before."""
        seen_s = max(now, batch.at_s + batch.time.images_s) + batch.time.model_s
        free_s = max(seen_s, worker.written_s)
        worker.written_s = free_s + batch.time.regions_s
        for task in batch.tasks:
            self._begun_s[task], self._ended_s[task] = now, worker.written_s
        self._batches.append((now, free_s, len(batch.tasks)))
        self._at(free_s, self._go_on, worker)

    def _rest(self, worker: _Worker, now: float) -> None:
        """The stretch is over; what came in the meantime begins the next one."""
        if self._interactive or self._predict:
            self._start(worker, *self._longest_waiting(), now)
        else:
            self._idle.append(worker)
