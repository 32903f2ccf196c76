"""How many workers a load needs: the fewest whose simulated waiting time at the peak is short enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from backend.capacity.arrivals import DAY_S, HOUR_S, Arrivals, Load, of_days, of_peak
from backend.capacity.batch_times import BatchTimes
from backend.capacity.simulation import Rules, Simulation
from backend.capacity.waits import Waits, Window, summarize

# Days are simulated whole until there are this many tasks or days, and never more than that many tasks a day.
FEWEST_TASKS, MOST_DAYS, MOST_TASKS = 20_000, 200, 300_000
# A stretch of the peak holds about this many tasks; shorter than two minutes it would say little about a queue.
PEAK_TASKS, LEAST_PEAK_S = 200_000, 120.0
# Of a stretch of the peak, until an empty queue is a usual one.
WARM_UP_SHARE = 0.2
# More workers than this, each one more than the last, are not tried.
MOST_WORKERS = 1_000_000


@dataclass(frozen=True)
class Stretch:
    """What is simulated of a load.

    Attributes:
        name: for people.
        peak: the windows whose waiting times count.
        whole: all of it.
        is_day: whether it holds whole days.
    """

    name: str
    arrivals: Arrivals
    peak: list[Window]
    whole: list[Window]
    is_day: bool


def stretch_of(load: Load, seed: int) -> Stretch:
    """Whole days where those are not too many tasks, else a stretch of the peak."""
    if load.images_a_day > MOST_TASKS:
        seconds = min(HOUR_S, max(LEAST_PEAK_S, PEAK_TASKS / load.peak_rate))
        window = [(WARM_UP_SHARE * seconds, seconds)]
        name = f"{seconds:.0f} s of the peak, the first {WARM_UP_SHARE:.0%} left out"
        return Stretch(name, of_peak(load, seconds, seed), window, window, False)
    days = min(MOST_DAYS, max(1, math.ceil(FEWEST_TASKS / load.images_a_day)))
    hours = [(day * DAY_S + hour * HOUR_S) for day in range(days) for hour in load.peak_hours()]
    peak = [(begin_s, begin_s + HOUR_S) for begin_s in hours]
    name = f"{days} whole day{'s' * (days > 1)}"
    return Stretch(name, of_days(load, days, seed), peak, [(0.0, days * DAY_S)], True)


@dataclass(frozen=True)
class Sized:
    """What a load needs.

    Attributes:
        workers: the fewest that keep the target.
        peak: at the peak, with that many; day: over whole days, None where only the peak was simulated.
        curve: at the peak by number of workers, for all that were tried.
    """

    load: Load
    stretch: str
    workers: int
    peak: Waits
    day: Waits | None
    curve: dict[int, Waits]

    @property
    def one_fewer(self) -> Waits | None:
        """At the peak with one worker fewer."""
        return self.curve.get(self.workers - 1)


@dataclass
class Sizing:
    """Looks for the number of workers.

    Args:
        rules: of a worker; their number is what is looked for.
        target_s: that 95 % of the single tasks may wait at the peak.
        told: hears of every course that was simulated.
    """

    times: BatchTimes
    rules: Rules
    target_s: float
    seed: int = 0
    told: Callable[[str], object] = lambda _: None
    _days: dict[int, Waits] = field(default_factory=dict)

    def size(self, load: Load) -> Sized:
        """The fewest workers for this load.

        Raises:
            ValueError: too few tasks arrive to say anything, or no number of workers is enough.
        """
        stretch = stretch_of(load, self.seed)
        curve: dict[int, Waits] = {}

        def is_enough(workers: int) -> bool:
            if workers not in curve:
                curve[workers], self._days[workers] = self._course(load, stretch, workers)
            return curve[workers].wait_p95_s <= self.target_s

        workers = fewest(is_enough, self._guess(load))
        for other in _around(workers):
            is_enough(other)
        day = self._days[workers] if stretch.is_day else None
        return Sized(load, stretch.name, workers, curve[workers], day, dict(sorted(curve.items())))

    def _course(self, load: Load, stretch: Stretch, workers: int) -> tuple[Waits, Waits]:
        self.told(f"{load.images_a_day:,.0f} images a day, {workers} worker{'s' * (workers > 1)}")
        course = Simulation(
            stretch.arrivals, self.times, replace(self.rules, workers=workers), self.seed
        ).run()
        peak = summarize(stretch.arrivals, course, stretch.peak, workers)
        return peak, summarize(stretch.arrivals, course, stretch.whole, workers)

    def _guess(self, load: Load) -> int:
        """As many as full batches without a pause would need."""
        size = max(one for one in self.times.sizes if one <= self.rules.max_batch)
        full = self.times.mean(size)
        return max(1, math.ceil(load.peak_rate * max(full.images_s, full.model_s, full.regions_s) / size))


def fewest(is_enough: Callable[[int], bool], guess: int) -> int:
    """The smallest number that is enough, when every larger one is, too.

    Raises:
        ValueError: not even a million is.
    """
    above, step = guess, 1
    while not is_enough(above):
        if above > MOST_WORKERS:
            raise ValueError(
                f"not even {above:,} workers keep the target: a single task takes too long by itself"
            )
        above, step = above + step, step * 2
    below = max(0, above - step)
    while below > 0 and is_enough(below):
        above, step = below, step * 2
        below = max(0, above - step)
    while above - below > 1:
        middle = (above + below) // 2
        above, below = (middle, below) if is_enough(middle) else (above, middle)
    return above


def _around(workers: int) -> Sequence[int]:
    """Numbers of workers for the picture."""
    near = {workers + more for more in (-2, -1, 1, 2, 3)}
    far = {round(workers * factor) for factor in (0.9, 0.95, 1.05, 1.1, 1.2)}
    return sorted(one for one in near | far if one > 0)
