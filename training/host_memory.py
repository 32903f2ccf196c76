"""What the C library does with memory that torch frees on a CPU: keep it for the next tensor, or return it at once.

A feature map of a large image has tens of megabytes. glibc gets each from the system and returns it as soon as it is
freed, and the system clears every page again. `transfiner benchmark networks` shows what that costs, with and without
`--return-memory`.
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3), by the numbers that glibc's malloc.h gives them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Tensors larger than this still come from the system each, and as much may lie idle at the heap's end.
KEPT_BYTES = 1 << 30


def keep_freed_memory(device: str = "cpu") -> bool:
    """For the rest of this process; whether anything changed (not for a GPU, nor with another C library).

    It cannot be taken back: what was kept stays in the heap, and later tensors are made of it.
    """
    if not device.startswith("cpu") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
