"""Which code made a version."""

from __future__ import annotations

import importlib.metadata
import subprocess
from functools import cache
from pathlib import Path


@cache
def code_version() -> str:
    """Version of this program, with the commit where it runs from a checkout: "0.1.0+3f2a91c"."""
    try:
        version = importlib.metadata.version("transfiner-ml-backend")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    commit = _commit(Path(__file__).resolve().parents[2])
    return f"{version}+{commit}" if commit else version


def _commit(checkout: Path) -> str:
    if not (checkout / ".git").exists():
        return ""
    try:
        said = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # no git here: the version says enough
    return said.stdout.strip() if said.returncode == 0 else ""
