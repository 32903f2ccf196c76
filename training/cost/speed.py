"""Frames per second by the paper's protocol (section 6.2): 200 iterations, five runs, one preloaded image at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

PAPER_ITERATIONS = 200
CPU_ITERATIONS = 20  # a CPU is some tens of times slower, and as steady
RUNS = 5


@dataclass(frozen=True)
class Speed:
    """Frames per second of each run, and their mean and standard deviation."""

    mean_fps: float
    std_fps: float
    runs_fps: tuple[float, ...]
    iterations: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def default_iterations(device: str) -> int:
    """The paper's 200 on a GPU, 20 on a CPU."""
    return PAPER_ITERATIONS if device.startswith("cuda") else CPU_ITERATIONS


def frames_per_second(
    run: Callable[[int], object],
    *,
    device: str,
    iterations: int | None = None,
    runs: int = RUNS,
    warm_up: int = 2,
) -> Speed:
    """Time a call on one image.

    Args:
        run: told which image of the preloaded ones to take; network and post-processing.
        iterations: of one run; the device's default when None. runs: to average over.
        warm_up: calls before the first run.
    """
    count = iterations or default_iterations(device)
    for index in range(warm_up):
        run(index)
    found = [count / _seconds(run, count, device) for _ in range(runs)]
    return Speed(statistics.fmean(found), statistics.stdev(found) if runs > 1 else 0.0, tuple(found), count)


def alternate(subjects: Sequence[Callable[[], object]], *, device: str, repeats: int, warm_up: int = 1) -> list[float]:
    """Median seconds of several calls that take turns, so that what slows the machine slows all of them."""
    for subject in list(subjects) * warm_up:
        subject()
    seconds: list[list[float]] = [[] for _ in subjects]
    for _ in range(repeats):
        for record, subject in zip(seconds, subjects, strict=True):
            record.append(_seconds(lambda _, one=subject: one(), 1, device))  # type: ignore[misc]
    return [statistics.median(record) for record in seconds]


def _seconds(run: Callable[[int], object], count: int, device: str) -> float:
    _wait(device)
    started_s = time.perf_counter()
    for index in range(count):
        run(index)
    _wait(device)
    return time.perf_counter() - started_s


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
