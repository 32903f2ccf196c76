"""What a course of events says: waiting times, how busy the workers were, how many tasks waited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.capacity.arrivals import Arrivals
from backend.capacity.simulation import Course

# From and until in s.
Window = tuple[float, float]


@dataclass(frozen=True)
class Waits:
    """Of the tasks that arrive within some windows of time.

    Attributes:
        tasks: that somebody waits for at a screen: all but bulk requests.
        wait_p50_s, wait_p95_s, wait_p99_s: from arrival until a worker turns to the task.
        answer_p95_s: until its outcome is recorded.
        bulk_answer_p95_s: the same for tasks of bulk requests; None without any.
        utilization: share of the workers' time, 0..1.
        depth_p95, depth_most: tasks waiting, as those that arrive find them.
        batch_mean: tasks a batch.
    """

    tasks: int
    wait_p50_s: float
    wait_p95_s: float
    wait_p99_s: float
    answer_p95_s: float
    bulk_answer_p95_s: float | None
    utilization: float
    depth_p95: float
    depth_most: int
    batch_mean: float


def summarize(arrivals: Arrivals, course: Course, windows: Sequence[Window], workers: int) -> Waits:
    """The figures of these windows.

    Raises:
        ValueError: nobody arrives in them.
    """
    at_s = arrivals.at_s
    inside = np.zeros(len(at_s), bool)
    for begin_s, end_s in windows:
        inside |= (at_s >= begin_s) & (at_s < end_s)
    people = inside & ~arrivals.is_bulk
    if not people.any():
        raise ValueError(
            "no single task arrives in the time looked at: simulate longer, or with fewer in bulk"
        )
    wait_s, answer_s = course.begun_s - at_s, course.ended_s - at_s
    p50, p95, p99 = np.percentile(wait_s[people], [50, 95, 99])
    bulk = inside & arrivals.is_bulk
    depth = _depths(at_s, course.begun_s)[inside]
    sizes = course.batches[_within(course.batches[:, 0], windows), 2]
    return Waits(
        tasks=int(people.sum()),
        wait_p50_s=float(p50),
        wait_p95_s=float(p95),
        wait_p99_s=float(p99),
        answer_p95_s=float(np.percentile(answer_s[people], 95)),
        bulk_answer_p95_s=float(np.percentile(answer_s[bulk], 95)) if bulk.any() else None,
        utilization=_utilization(course.batches, windows, workers),
        depth_p95=float(np.percentile(depth, 95)),
        depth_most=int(depth.max()),
        batch_mean=float(sizes.mean()) if len(sizes) else 0.0,
    )


def _within(moments_s: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
    found = np.zeros(len(moments_s), bool)
    for begin_s, end_s in windows:
        found |= (moments_s >= begin_s) & (moments_s < end_s)
    return found


def _depths(at_s: np.ndarray, begun_s: np.ndarray) -> np.ndarray:
    """(N,) tasks that wait just before each arrives."""
    arrived = np.searchsorted(at_s, at_s, "left")
    taken = np.searchsorted(np.sort(begun_s), at_s, "right")
    return np.maximum(arrived - taken, 0)


def _utilization(batches: np.ndarray, windows: Sequence[Window], workers: int) -> float:
    """Of the workers' networks, waiting for images and outlines included."""
    busy_s = seconds = 0.0
    for begin_s, end_s in windows:
        held = np.minimum(batches[:, 1], end_s) - np.maximum(batches[:, 0], begin_s)
        busy_s += float(np.maximum(held, 0).sum())
        seconds += end_s - begin_s
    return busy_s / (workers * seconds)
