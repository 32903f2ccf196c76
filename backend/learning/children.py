"""A step of a round as a process of its own: watched, stopped on demand, gone when its worker is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)
POLL_S = 0.25
# A child asked to stop saves its state first; on a busy machine one iteration takes seconds.
STOP_GRACE_S = 120.0
LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: exit status; negative: the signal that killed it.
        stopped_for: why it was asked to stop; "" when it was not.
        tail: its last lines.
    """

    code: int
    stopped_for: str
    tail: str


def run_child(
    command: Sequence[str],
    folder: Path,
    name: str,
    *,
    look: Callable[[], None],
    stop_because: Callable[[], str],
) -> Ended:
    """Run `command` to its end; its output goes to FOLDER/<name>.log.

    Args:
        look: called a few times a second, e.g. to read the child's progress.
        stop_because: a reason ends the child politely; "" lets it go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{name}.log"
    bound = [sys.executable, "-m", "backend.learning.bound", str(os.getpid()), str(folder / f".{name}.lock")]
    with output.open("ab") as stream:
        child = subprocess.Popen(
            [*bound, *command], stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    reason = ""
    try:
        while child.poll() is None and not (reason := stop_because()):
            look()
            time.sleep(POLL_S)
        look()
    finally:
        _end(child)
    return Ended(child.returncode, reason, _tail(output))


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            log.warning("the child did not end within %.0f s; killing it", STOP_GRACE_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # What it started itself goes too.
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tail(output: Path) -> str:
    return "\n".join(output.read_text(errors="replace").strip().splitlines()[-LOG_TAIL_LINES:])
