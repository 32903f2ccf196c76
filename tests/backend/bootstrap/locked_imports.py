"""Runs code in a process in which only the packages of one lock can be imported, as in that lock's own environment."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

# What backend/bootstrap installs beside a lock with torch: ours, and detectron2 by whichever name it is distributed.
OURS = {"transfiner-ml-backend"}

GATE = """
import sys
from importlib.machinery import PathFinder
allowed = set({allowed!r}) | set(sys.stdlib_module_names) | {{"backend", "model", "training", "integration"}}
class Gate(PathFinder):
    def find_spec(name, path=None, target=None):
        known = path is not None or name in allowed or name.startswith("_")
        return PathFinder.find_spec(name, path, target) if known else None
sys.meta_path[sys.meta_path.index(PathFinder)] = Gate
"""


def locked(lock: Path) -> set[str]:
    """The distributions that a lock names."""
    return {line.partition("==")[0].lower().replace("_", "-") for line in lock.read_text().splitlines()}


def run_locked(code: str, lock: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in `folder` with everything forbidden that the lock does not name."""
    distributions = importlib.metadata.packages_distributions()
    beside = distributions.get("detectron2", []) if "torch" in locked(lock) else []
    names = locked(lock) | OURS | set(beside)
    allowed = ["detectron2"] * ("torch" in locked(lock)) + [
        name
        for name, of in distributions.items()
        if {distribution.lower().replace("_", "-") for distribution in of} & names
    ]
    command = [sys.executable, "-c", GATE.format(allowed=allowed) + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
