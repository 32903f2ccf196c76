"""Ties a process to the one that started it, so that not even kill -9 of the parent leaves orphans.

    python -m backend.processes.parent_death PARENT_PID LOCK_FILE PROGRAM [ARGUMENT...]

runs a program that ends with its parent, and only one at a time for each lock file. The death signal and the lock both
survive `exec`, so this process becomes the program. A training whose worker was killed gets SIGTERM, saves its state
and ends; its successor waits for the lock until then.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# linux/prctl.h: the signal this process gets when its parent dies.
PR_SET_PDEATHSIG = 1
# Loaded at import: between fork and exec a thread that no longer exists may hold the lock of the dynamic linker.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None


def die_with_parent(parent_pid: int, death_signal: int = signal.SIGTERM) -> None:
    """Ask the kernel to send `death_signal` to this process when its parent dies (Linux; elsewhere does nothing).

    Call it in the child. Exits at once when the parent died before the call.
    """
    if _LIBC is None:
        return
    if _LIBC.prctl(PR_SET_PDEATHSIG, death_signal) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(0)


def ends_with_parent(death_signal: int = signal.SIGKILL) -> Callable[[], None]:
    """Make a `preexec_fn`: the started process gets a signal when this one dies, however it dies."""
    return functools.partial(die_with_parent, os.getpid(), death_signal)


def bound_command(command: list[str], lock: Path) -> list[str]:
    """The command line that runs `command` tied to this process, once at a time under `lock`."""
    return [sys.executable, "-m", "backend.processes.parent_death", str(os.getpid()), str(lock), *command]


def main(arguments: list[str]) -> None:
    """Set the death signal, take the lock, become the program."""
    parent, lock, *command = arguments
    die_with_parent(int(parent), signal.SIGTERM)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.set_inheritable(descriptor, True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
