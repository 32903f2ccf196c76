"""What has to be true before anything is installed. Each check raises SetupError with the fix."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from .failures import SetupError

OLDEST_PYTHON = (3, 11)
OLDEST_WITHOUT_WHEELS = (3, 14)  # Label Studio pins a numpy that has no wheels from this Python on
BYTES_PER_GIB = 1024**3
COMPILERS = ("cc", "gcc", "clang")


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> None:
    """Raise SetupError unless `version` can run the project."""
    if version[:2] >= OLDEST_PYTHON:
        return
    present, wanted = ".".join(map(str, version)), ".".join(map(str, OLDEST_PYTHON))
    raise SetupError(
        f"this is Python {present}; {wanted} or newer is needed: install one and name it, "
        f"for example `make setup PYTHON=python{wanted}`"
    )


def check_venv() -> None:
    """Debian splits `venv` off its Python; the error of `python3 -m venv` there hides in ten lines."""
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
