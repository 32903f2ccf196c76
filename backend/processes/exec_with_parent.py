"""Runs one program that ends with the process that asked for it, and never twice in one folder.

    python -m backend.processes.exec_with_parent PARENT_PID LOCK_FILE PROGRAM [ARGUMENT...]

The tie to the parent and the lock both survive `exec`, so this process becomes the program. A training whose worker was
killed gets SIGTERM, saves its state and ends; the one that goes on waits here until it has.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys

from backend.processes.parent_death import die_with_parent


def main(arguments: list[str]) -> None:
    """Tie, lock, become the program."""
    parent, lock, *command = arguments
    die_with_parent(int(parent), signal.SIGTERM)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.set_inheritable(descriptor, True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
