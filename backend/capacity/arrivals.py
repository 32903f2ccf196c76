"""When tasks arrive: a Poisson process whose rate follows the hours of a day, single tasks and bulk requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HOUR_S, DAY_S = 3600.0, 86400.0
# Shares of a day in percent, hour by hour: an office that begins at seven, has lunch at twelve and leaves at five.
# An assumption; the busiest hour has 3.12 times the mean.
OFFICE = (0, 0, 0, 0, 0, 0, 0, 3, 9, 12, 13, 11, 6, 10, 13, 11, 8, 4, 0, 0, 0, 0, 0, 0)
FLAT = (1,) * 24
# What Label Studio was seen to send for "Retrieve predictions".
BULK_TASKS = 450


@dataclass(frozen=True)
class Arrivals:
    """N tasks in the order in which they arrive.

    Attributes:
        at_s: (N,) seconds.
        request: (N,) numbers of their requests, growing.
        is_bulk: (N,) part of a bulk request: nobody waits for this one at a screen.
        is_interactive: (N,) in the fast lane.
    """

    at_s: np.ndarray
    request: np.ndarray
    is_bulk: np.ndarray
    is_interactive: np.ndarray

    def request_ends(self) -> list[int]:
        """For each request the place behind its last task."""
        return [
            *(np.flatnonzero(np.diff(self.request)) + 1).tolist(),
            *([len(self.at_s)] if len(self.at_s) else []),
        ]

    @classmethod
    def single(cls, at_s: Sequence[float] | np.ndarray, *, interactive: bool = False) -> Arrivals:
        """One task a request, all in one lane."""
        moments = np.asarray(at_s, float)
        none = np.zeros(len(moments), bool)
        return cls(moments, np.arange(len(moments)), none, none | interactive)


@dataclass(frozen=True)
class Load:
    """What is asked of the service.

    Attributes:
        images_a_day: tasks, one image each.
        shares: 24 weights, the hours of a day.
        bulk_share: 0..1 of the tasks that come in requests of `BULK_TASKS`.
        interactive_share: 0..1 of the other tasks that take the fast lane (requests with a context).
    """

    images_a_day: float
    shares: tuple[float, ...] = OFFICE
    bulk_share: float = 0.0
    interactive_share: float = 0.0

    def rate(self, hour: int) -> float:
        """Tasks a second in an hour of the day."""
        return self.images_a_day * self.shares[hour] / sum(self.shares) / HOUR_S

    @property
    def peak_rate(self) -> float:
        """Tasks a second in the busiest hour."""
        return max(self.rate(hour) for hour in range(24))

    @property
    def peak_factor(self) -> float:
        """The busiest hour beside the mean."""
        return self.peak_rate * DAY_S / self.images_a_day

    def peak_hours(self) -> list[int]:
        return [hour for hour in range(24) if self.shares[hour] == max(self.shares)]


def of_days(load: Load, days: int, seed: int) -> Arrivals:
    """Whole days, one after the other."""
    rates = np.tile([load.rate(hour) for hour in range(24)], days)
    return _drawn(load, HOUR_S * np.arange(24 * days), HOUR_S, rates, seed)


def of_peak(load: Load, seconds: float, seed: int) -> Arrivals:
    """A stretch of the busiest hour, from 0 s."""
    return _drawn(load, np.zeros(1), seconds, np.array([load.peak_rate]), seed)


def _drawn(load: Load, begin_s: np.ndarray, length_s: float, rates: np.ndarray, seed: int) -> Arrivals:
    """In (P,) pieces of a length, each with its tasks a second."""
    rng = np.random.default_rng(seed)
    singles = _moments(rng, begin_s, length_s, rates * (1 - load.bulk_share))
    bulks = _moments(rng, begin_s, length_s, rates * load.bulk_share / BULK_TASKS)
    moments = np.concatenate([singles, bulks])
    order = np.argsort(moments, kind="stable")
    sizes = np.where(order < len(singles), 1, BULK_TASKS)
    is_bulk = np.repeat(order >= len(singles), sizes)
    fast = np.repeat(rng.random(len(order)) < load.interactive_share, sizes) & ~is_bulk
    return Arrivals(np.repeat(moments[order], sizes), np.repeat(np.arange(len(order)), sizes), is_bulk, fast)


def _moments(rng: np.random.Generator, begin_s: np.ndarray, length_s: float, rates: np.ndarray) -> np.ndarray:
    begins = np.repeat(begin_s, rng.poisson(rates * length_s))
    return begins + length_s * rng.random(len(begins))
