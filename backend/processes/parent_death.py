"""Ties a process to the one that started it, so that not even kill -9 of the parent leaves orphans."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable

# linux/prctl.h: the signal this process gets when its parent dies.
PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int, death_signal: int = signal.SIGTERM) -> None:
    """Ask the kernel to send `death_signal` to this process when its parent dies (Linux; elsewhere does nothing).

    Call it in the child. Exits at once when the parent died before the call.
    """
    if not sys.platform.startswith("linux"):
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(0)


def ends_with_parent() -> Callable[[], None]:
    """For `preexec_fn`: the process to be started is killed when this one dies, however it dies."""
    return functools.partial(die_with_parent, os.getpid(), signal.SIGKILL)
