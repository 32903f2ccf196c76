"""Peak memory of tensors: counted, not measured, so the same on every run and machine.

What an operator allocates for itself and frees before it returns is not seen; on a GPU `torch.cuda` is asked as well.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker


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
