"""What a run is made of: its setting, its trainings and measurements, and the files that keep what is done."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import load_checkpoint
from training.benchmark.directions.variants import (
    compared_rows,
    measured_config,
    name_of,
    variant_config,
)

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        weights: the shared detector. folder: of the run. tables: which.
        seeds: trainings of every row. scenes: for training. images: held out, to measure on.
        minutes: wall clock that steps are fitted to. steps: of every training; 0: fitted.
        processes: with one thread each.
        coarse_steps: in which the detector's coarse mask first gets used to its smaller grid, once for all rows.
    """

    weights: Path
    folder: Path
    tables: tuple[int, ...]
    seeds: int = 3
    scenes: int = 300
    images: int = 40
    minutes: float = 30.0
    steps: int = 0
    processes: int = 2
    coarse_steps: int = 300


@dataclass(frozen=True)
class Task:
    """One training and the rows that are measured with it: by name of the measurement, its (table, row)."""

    name: str
    seed: int
    measured: dict[str, tuple[int, str]]


def tasks(setting: Setting, steps: int) -> list[Task]:
    """All trainings, seed by seed; rows that are one training share it, those that are one measurement too."""
    detector = load_checkpoint(setting.weights).cfg
    planned: list[Task] = []
    for seed in range(setting.seeds):
        by_name: dict[str, Task] = {}
        for table, row in compared_rows(setting.tables):
            cfg = variant_config(detector, table.number, row.key, iterations=steps, seed=seed)
            task = by_name.setdefault(name_of(cfg), Task(name_of(cfg), seed, {}))
            task.measured.setdefault(name_of(measured_config(cfg, row)), (table.number, row.key))
        planned += by_name.values()
    return planned


def result_file(setting: Setting, name: str) -> Path:
    """Where a measurement is kept; its scenes are part of its name."""
    return setting.folder / "results" / f"{name}-{setting.scenes}-{setting.images}-{setting.coarse_steps}.json"


def planned_steps(setting: Setting) -> int:
    """The steps that this folder's run was planned with."""
    return setting.steps or int(json.loads((setting.folder / PLAN_FILE).read_text())["steps"])


def keep(file: Path, content: dict[str, Any]) -> None:
    """Write JSON, wholly or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(file)


def plan(setting: Setting) -> dict[str, Any]:
    """What a run would need, without computing anything."""
    rows = compared_rows(setting.tables)
    one = [task for task in tasks(setting, setting.steps or 1) if task.seed == 0]
    return {
        "tables": list(setting.tables),
        "rows": len(rows),
        "trainings": len(one) * setting.seeds,
        "measurements": sum(len(task.measured) for task in one) * setting.seeds,
        "seeds": setting.seeds,
        "scenes": setting.scenes,
        "images": setting.images,
        "steps": setting.steps or "fitted to the minutes by timing every variant first",
        "minutes": setting.minutes,
        "processes": setting.processes,
        "disk_mb": round(1.5 * (setting.scenes + setting.images)),
        "setting": {name: str(value) for name, value in asdict(setting).items()},
    }
