"""Checks before anything is installed, and explanations of failed installations, each with the fix."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

OLDEST_PYTHON = (3, 11)
OLDEST_WITHOUT_WHEELS = (3, 14)  # Label Studio pins a numpy that has no wheels from this Python on
BYTES_PER_GIB = 1024**3
COMPILERS = ("cc", "gcc", "clang")


class SetupError(Exception):
    """A problem that the user has to fix; the message says how."""


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> None:
    """Raise SetupError unless `version` can run the project."""
    if version[:2] >= OLDEST_PYTHON:
        return
    current, oldest = ".".join(map(str, version)), ".".join(map(str, OLDEST_PYTHON))
    raise SetupError(
        f"this is Python {current}; {oldest} or newer is needed: install one and name it, "
        f"for example `make setup PYTHON=python{oldest}`"
    )


def check_venv() -> None:
    """Raise SetupError where Python lacks `venv`, as on Debian, whose own message is hard to find."""
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise SetupError(f"this Python lacks venv: `sudo apt-get install python{version}-venv`, or use another")


def check_disk(folder: Path, installed_gib: float, download_gib: float) -> None:
    """Raise SetupError unless `folder` can take the installed files and TMPDIR the downloads."""
    temporary = Path(tempfile.gettempdir())
    if folder.stat().st_dev == temporary.stat().st_dev:
        needs = [(folder, installed_gib + download_gib)]
    else:
        needs = [(folder, installed_gib), (temporary, download_gib)]
    for place, needed_gib in needs:
        free_gib = shutil.disk_usage(place).free / BYTES_PER_GIB
        if free_gib < needed_gib:
            raise SetupError(
                f"{place} has {free_gib:.1f} GiB free and {needed_gib:.1f} GiB are needed: free some space, "
                "put the checkout on a larger disk, or point TMPDIR at one for the downloads"
            )


def check_compiler(reason: str) -> None:
    """Raise SetupError unless a C compiler is on the path; `reason` says what has to be compiled."""
    if os.environ.get("CC") or any(shutil.which(name) for name in COMPILERS):
        return
    raise SetupError(
        f"no C compiler was found, and {reason}: `sudo apt-get install build-essential python3-dev`, "
        "or use Python 3.11 to 3.13 (`make setup PYTHON=python3.12`)"
    )


NETWORK = (
    r"NewConnectionError|ConnectTimeoutError|NameResolutionError|ReadTimeoutError|ProxyError|SSLError"
    r"|Max retries|from versions: none|[Ee]rror sending request|dns error|tcp connect error|Connection refused"
)
COMPILER = (
    r"command '\S*(gcc|g\+\+|cc|c\+\+|cl(\.exe)?)' failed|[Uu]nable to find a compiler"
    r"|Python\.h: No such file|Visual C\+\+"
)
TAIL_LINES = 6


# The first row that matches what pip or uv printed explains the failure. An unreachable registry comes before "no
# matching distribution", because pip reports the first as the second.
INSTALL_FAILURES = (
    (
        r"No space left on device|[Ee]rrno 28|os error 28",
        "the disk is full: free some space (`df -h .`) and run the same command again",
    ),
    (
        NETWORK,
        "the package registry could not be reached: check the connection, set HTTPS_PROXY behind a proxy, "
        "or name your mirror with `pip config set global.index-url URL`, then run the same command again",
    ),
    (
        COMPILER,
        "a package had to be compiled and no working compiler was found: "
        "`sudo apt-get install build-essential python3-dev`, then run the same command again",
    ),
    (
        r"No matching distribution found|Could not find a version|No solution found when resolving",
        "the registry lacks one of the locked versions for this Python: use Python 3.11 to 3.13 "
        "(`make setup PYTHON=python3.12`), or a mirror that carries every file",
    ),
    (r"Permission denied|Errno 13|os error 13", "a folder is not writable for you: run as the owner of this checkout"),
)


def explain_failure(output: str) -> str:
    """Explain the output of a failed pip or uv, with the fix; its last lines when the cause is unknown."""
    for pattern, explanation in INSTALL_FAILURES:
        if re.search(pattern, output):
            return explanation
    tail = "\n    ".join(output.strip().splitlines()[-TAIL_LINES:])
    return f"the installation failed; its last lines were:\n    {tail}"
