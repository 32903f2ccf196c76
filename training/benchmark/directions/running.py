"""The whole run: shared scenes, trainings, measurements; every finished part is kept, so a run goes on there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.checkpoint import load_checkpoint
from training.benchmark.directions.looking import look
from training.benchmark.directions.shared import SharedDetector
from training.benchmark.directions.teaching import mask_branch, teach
from training.benchmark.directions.variants import (
    compared_rows,
    measured_config,
    name_of,
    row_of,
    variant_config,
)
from training.evaluation.in_processes import in_order

PLAN_FILE = "plan.json"
SHARE_OF_BUDGET = 0.9  # what the trainings' speed, measured beforehand, is trusted with


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
    images: int = 80
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
            cfg = variant_config(detector, row, iterations=steps, seed=seed)
            task = by_name.setdefault(name_of(cfg), Task(name_of(cfg), seed, {}))
            task.measured.setdefault(name_of(measured_config(cfg, row)), (table.number, row.key))
        planned += by_name.values()
    return planned


def run(setting: Setting, tell: Callable[[str], object], after_seed: Callable[[int], object]) -> int:
    """Do what has not been done; returns the steps of each training.

    Args:
        tell: told what is being done. after_seed: told how many seeds are complete, each time one is.
    """
    started_s = time.monotonic()
    detector = SharedDetector(setting.weights, setting.folder / "shared")
    _prepare(setting, detector, tell)
    _settle(setting, detector, tell)
    steps = _steps(setting, detector, time.monotonic() - started_s, tell)
    left = [task for task in tasks(setting, steps) if not _is_done(setting, task)]
    total, begun_s = len(left), time.monotonic()
    arguments = [(setting, task) for task in left]
    for done, task in enumerate(in_order(_work, arguments, setting.processes), 1):
        each_s = (time.monotonic() - begun_s) / done
        rows = ", ".join(f"table {number} {key}" for number, key in task.measured.values())
        tell(
            f"{done} of {total} trainings, about {each_s * (total - done) / 60:.1f} min left: seed {task.seed}, {rows}"
        )
        if done == total or left[done].seed != task.seed:
            after_seed(task.seed + 1)
    if not total:
        after_seed(setting.seeds)
    return steps


def _prepare(setting: Setting, detector: SharedDetector, tell: Callable[[str], object]) -> None:
    parts = []
    for split, count in (("train", setting.scenes), ("val", setting.images)):
        absent = detector.missing(split, count)
        parts += [(setting, split, absent[place : place + 20]) for place in range(0, len(absent), 20)]
    for done, _ in enumerate(in_order(_see, parts, setting.processes), 1):
        tell(f"the shared detector has seen {done} of {len(parts)} parts of the scenes")


def _settle(setting: Setting, detector: SharedDetector, tell: Callable[[str], object]) -> None:
    """The start of all rows whose coarse grid is half the detector's: its coarse mask, trained on that grid."""
    file = _coarse_file(setting, detector)
    if file.is_file():
        return
    tell(f"the coarse mask gets used to its smaller grid, {setting.coarse_steps} steps")
    torch.set_num_threads(1)
    cfg = variant_config(detector.cfg, row_of(5, "depth-0"), iterations=setting.coarse_steps, seed=0)
    heads = mask_branch(cfg, load_checkpoint(setting.weights).state)
    teach(heads, cfg, detector, setting.scenes)
    unfinished = file.with_suffix(f".{os.getpid()}")
    save_file({f"roi_heads.{name}": one.contiguous() for name, one in heads.state_dict().items()}, unfinished)
    unfinished.replace(file)


def _start(setting: Setting, detector: SharedDetector, cfg: CfgNode) -> dict[str, Tensor]:
    """Weights of the coarse mask for a row's grid."""
    if cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION == detector.cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION:
        return load_checkpoint(setting.weights).state
    return load_file(_coarse_file(setting, detector))


def _coarse_file(setting: Setting, detector: SharedDetector) -> Path:
    return detector.folder / f"coarse-{setting.scenes}-{setting.coarse_steps}.safetensors"


def _see(setting: Setting, split: str, indices: list[int]) -> None:
    torch.set_num_threads(1)
    SharedDetector(setting.weights, setting.folder / "shared").compute(split, indices)


def _work(setting: Setting, task: Task) -> Task:
    """Train, measure, keep."""
    torch.set_num_threads(1)
    detector = SharedDetector(setting.weights, setting.folder / "shared")
    steps = planned_steps(setting)
    first = next(iter(task.measured.values()))
    cfg = variant_config(detector.cfg, row_of(*first), iterations=steps, seed=task.seed)
    start = _start(setting, detector, cfg)
    heads = mask_branch(cfg, start)
    began_s = time.monotonic()
    teach(heads, cfg, detector, setting.scenes)
    seconds = time.monotonic() - began_s
    for name, (number, key) in task.measured.items():
        cfg = variant_config(detector.cfg, row_of(number, key), iterations=steps, seed=task.seed)
        as_measured = mask_branch(measured_config(cfg, row_of(number, key)), start)
        as_measured.load_state_dict(heads.state_dict())
        found = look(as_measured, detector, setting.images)
        _write(result_file(setting, name), {"training_s": seconds, "steps": steps, "found": found})
    return task


def _is_done(setting: Setting, task: Task) -> bool:
    return all(result_file(setting, name).is_file() for name in task.measured)


def result_file(setting: Setting, name: str) -> Path:
    """Where a measurement is kept; its scenes are part of its name."""
    return (
        setting.folder / "results" / f"{name}-{setting.scenes}-{setting.images}-{setting.coarse_steps}.json"
    )


def planned_steps(setting: Setting) -> int:
    """The steps that this folder's run was planned with."""
    return setting.steps or int(json.loads((setting.folder / PLAN_FILE).read_text())["steps"])


def _steps(setting: Setting, detector: SharedDetector, spent_s: float, tell: Callable[[str], object]) -> int:
    """Given, planned by an earlier start of this run, or fitted to the minutes by timing every variant for a moment."""
    file = setting.folder / PLAN_FILE
    if setting.steps or file.is_file():
        return planned_steps(setting)
    tell("timing each variant for a moment")
    step_s, fixed_s = _timed(setting, detector)
    wanted_s = setting.minutes * 60 * SHARE_OF_BUDGET - spent_s
    steps = max(20, int((wanted_s * setting.processes / setting.seeds - fixed_s) / step_s))
    facts = {"steps": steps, "seconds_a_step_of_all": step_s, "seconds_to_measure_all": fixed_s,
             "load_average": os.getloadavg(), "minutes": setting.minutes}  # fmt: skip
    _write(file, facts)
    tell(f"{steps} steps a training fit into {setting.minutes:g} minutes")
    return steps


def _timed(setting: Setting, detector: SharedDetector) -> tuple[float, float]:
    """(seconds of one step of every training, seconds to measure every row), of one seed and one process."""
    torch.set_num_threads(1)
    steps_s = looks_s = 0.0
    for task in tasks(setting, 4):
        if task.seed:
            break
        cfg = variant_config(detector.cfg, row_of(*next(iter(task.measured.values()))), iterations=4, seed=0)
        heads = mask_branch(cfg, _start(setting, detector, cfg))
        steps_s += _seconds_a_step(heads, cfg, detector, setting.scenes)
        seen = min(2, setting.images)
        began_s = time.monotonic()
        look(heads, detector, seen)
        looks_s += len(task.measured) * setting.images * (time.monotonic() - began_s) / seen
    return steps_s, looks_s


def _seconds_a_step(heads: nn.Module, cfg: CfgNode, detector: SharedDetector, scenes: int) -> float:
    """Of the steps after the first, which warms up."""
    marks: list[float] = []
    teach(heads, cfg, detector, scenes, lambda _: marks.append(time.monotonic()))
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def _write(file: Path, content: dict[str, Any]) -> None:
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
