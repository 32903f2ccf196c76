"""Memory over many tasks: flat, or how steep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from backend.devtools.load.measuring import ServedModelRun

CHUNK = 40
# Of all tasks; what is loaded and cached by then is not growth.
WARM_UP_SHARE = 0.1


def endure(service: ServedModelRun, count: int, report: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Ask for `count` tasks in requests of `CHUNK`, and watch each process's resident memory.

    Args:
        report: told how far it is.

    Returns:
        For each process its MiB after the warm-up and at the end, and the slope of a straight line through all samples
        after the warm-up, in MiB a 1,000 tasks.
    """
    samples: list[tuple[int, dict[str, float]]] = []
    begun = time.perf_counter()
    asked = 0
    while asked < count:
        asked += service.ask_chunk(1_000_000 + asked, min(CHUNK, count - asked))
        samples.append((asked, service.memory_mib()))
        left_s = (time.perf_counter() - begun) / asked * (count - asked)
        memory = ", ".join(f"{name} {mib:.0f}" for name, mib in samples[-1][1].items())
        report(f"endurance: {asked} of {count} tasks, {left_s / 60:.0f} min left; MiB: {memory}")
    warm = [sample for sample in samples if sample[0] >= count * WARM_UP_SHARE]
    figures: dict[str, Any] = {"tasks": count, "seconds": round(time.perf_counter() - begun, 1)}
    for name in warm[0][1]:
        figures[name] = _growth([number for number, _ in warm], [mib[name] for _, mib in warm])
    return figures


def _growth(tasks: list[int], mib: list[float]) -> dict[str, float]:
    slope = float(np.polyfit(tasks, mib, 1)[0]) if len(tasks) > 1 else 0.0
    return {"MiB after warm-up": mib[0], "MiB at the end": mib[-1], "MiB a 1,000 tasks": round(slope * 1000, 2)}
