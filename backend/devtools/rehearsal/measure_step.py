"""Measures checkpoints on the test set as a process: JSON on the command line, JSON by name on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.errors import ServiceError
from backend.processes.parent_death import ends_with_parent


def measure(checkpoints: Mapping[str, Path], test_set: Path) -> dict[str, dict[str, float]]:
    """mask_ap and boundary_ap, in points, of each checkpoint directory; by the gate's evaluator.

    Raises:
        ServiceError: the process failed; with its last words.
    """
    request = json.dumps([{name: str(path) for name, path in checkpoints.items()}, str(test_set)])
    command = [sys.executable, "-m", "backend.devtools.rehearsal.measure_step", request]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=ends_with_parent())
    if ended.returncode:
        raise ServiceError(f"Measuring failed: {ended.stderr.strip().rpartition(chr(10))[2]}")
    figures: dict[str, dict[str, float]] = json.loads(ended.stdout.strip().rpartition("\n")[2])
    return figures


def main(checkpoints: dict[str, str], test_set: str) -> dict[str, Any]:
    """In the process itself."""
    from model.checkpoints.metadata import read_metadata
    from training.gate.detections import DetectionCache, detect_with
    from training.gate.holdout import measure as measure_on
    from training.gate.holdout import open_holdout

    holdout, findings = open_holdout(Path(test_set)), DetectionCache(detect_with())
    results = {}
    for name, directory in checkpoints.items():
        detections = findings.on(Path(directory), holdout.samples, holdout.keys)
        figures = measure_on(holdout, detections, read_metadata(directory)["classes"], 0.02).figures()
        results[name] = {f"{kind}_ap": round(100 * figures[kind]["AP"], 2) for kind in ("mask", "boundary")}
    return results


if __name__ == "__main__":
    print(json.dumps(main(*json.loads(sys.argv[1]))))
