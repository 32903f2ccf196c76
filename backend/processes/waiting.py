"""Wait for another process: until a condition holds, or an address answers."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import requests

from backend.errors import StartError

Value = TypeVar("Value")


def wait_until(
    condition: Callable[[], Value],
    subject: str,
    limit_s: float,
    *,
    poll_s: float = 0.05,
    process: subprocess.Popen[bytes] | None = None,
    log: Path | None = None,
) -> Value:
    """Poll until the condition holds; return its value.

    Args:
        subject: what is waited for, as the error message names it.
        process: one that the condition depends on; the wait ends when it ends.
    """
    deadline_s = time.monotonic() + limit_s
    hint = f"The reason is in {log}." if log else "The logs say why."
    while not (value := condition()):
        if process is not None and process.poll() is not None:
            raise StartError(f"{subject} ended with status {process.returncode} before it was ready.", hint)
        if time.monotonic() > deadline_s:
            raise StartError(f"{subject} did not come within {limit_s:.0f} s.", hint)
        time.sleep(poll_s)
    return value


def answers(url: str, timeout_s: float = 3.0) -> bool:
    """Whether an address answers without an error."""
    try:
        return requests.get(url, timeout=timeout_s).ok
    except requests.RequestException:
        return False
