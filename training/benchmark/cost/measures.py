"""What a call costs: operations and peak memory, counted and so deterministic; seconds, measured.

What an operator allocates for itself and frees before it returns is not seen; on a GPU `torch.cuda` is asked as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode


def count_flops(run: Callable[[], object]) -> dict[str, int]:
    """Operations (2 x MAC) of a call by kind of operator, with their sum as ``total``.

    Fused attention counts as its two products. ``nn.TransformerEncoder``'s fast path would count as nothing in
    inference, so it is off meanwhile.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    kinds = {str(kind): int(count) for kind, count in counter.get_flop_counts()["Global"].items()}
    return {"total": int(counter.get_total_flops())} | dict(sorted(kinds.items()))


def peak_bytes(run: Callable[[], object], *modules: nn.Module) -> int:
    """Most bytes of tensors alive at once during a call, parameters and buffers of ``modules`` included.

    Works on real tensors and under ``FakeTensorMode``, where nothing is computed and nothing allocated.
    """
    tracker = MemTracker()
    tracker.track_external(*modules)
    with tracker:
        run()
    snapshot = tracker.get_tracker_snapshot("peak")
    return sum(int(kinds["Total"]) for kinds in snapshot.values())


def cuda_peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """What torch's allocator held at most on a GPU during a call; None on other devices."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))


def frames_per_second(
    run: Callable[[int], object], *, device: str, iterations: int | None = None, runs: int = 5
) -> dict[str, Any]:
    """Time a call on one image by the paper's protocol (section 6.2), for reports.

    Args:
        run: called with the index of the preloaded image to take; network and post-processing.
        iterations: of one run; None: the paper's 200, on a CPU, which is slower and as steady, 20.
        runs: to average over, after two calls to warm up.
    """
    count = iterations or (200 if device.startswith("cuda") else 20)
    for index in range(2):
        run(index)
    speeds = [count / _seconds(run, count, device) for _ in range(runs)]
    deviation = statistics.stdev(speeds) if runs > 1 else 0.0
    return {"mean_fps": statistics.fmean(speeds), "std_fps": deviation, "runs_fps": speeds, "iterations": count}


def alternate(
    subjects: Sequence[Callable[[], object]], *, device: str, repeats: int, cpu_time: bool = False
) -> list[float]:
    """Median seconds of several calls that take turns, so that what slows the machine slows all of them.

    ``cpu_time``: on a CPU count what the processor worked, not what passed while others had it.
    """
    clock = time.process_time if cpu_time and device == "cpu" else time.perf_counter
    for subject in subjects:
        subject()
    seconds: list[list[float]] = [[] for _ in subjects]
    for _ in range(repeats):
        for record, subject in zip(seconds, subjects, strict=True):
            record.append(_seconds(lambda _, call=subject: call(), 1, device, clock))  # type: ignore[misc]
    return [statistics.median(record) for record in seconds]


def _seconds(
    run: Callable[[int], object], count: int, device: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    _wait(device)
    started_s = clock()
    for index in range(count):
        run(index)
    _wait(device)
    return clock() - started_s


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
