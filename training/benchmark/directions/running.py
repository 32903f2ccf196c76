"""The whole run: shared scenes, trainings, measurements; every finished part is kept, so a run goes on there."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from training.benchmark.directions.fitting import fitted_steps
from training.benchmark.directions.looking import look
from training.benchmark.directions.planning import Setting, Task, keep, planned_steps, result_file, tasks
from training.benchmark.directions.shared import SharedDetector
from training.benchmark.directions.starting import settle, start_of
from training.benchmark.directions.teaching import mask_branch, teach
from training.benchmark.directions.variants import measured_config, row_of, variant_config
from training.evaluation.in_processes import in_order


def run(setting: Setting, tell: Callable[[str], object], after_seed: Callable[[int], object]) -> int:
    """Do what has not been done; returns the steps of each training.

    Args:
        tell: told what is being done. after_seed: told how many seeds are complete, each time one is.
    """
    started_s = time.monotonic()
    detector = SharedDetector(setting.weights, setting.folder / "shared")
    _prepare(setting, detector, tell)
    settle(setting, detector, tell)
    steps = fitted_steps(setting, detector, time.monotonic() - started_s, tell)
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


def _see(setting: Setting, split: str, indices: list[int]) -> None:
    torch.set_num_threads(1)
    SharedDetector(setting.weights, setting.folder / "shared").compute(split, indices)


def _work(setting: Setting, task: Task) -> Task:
    """Train, measure, keep."""
    torch.set_num_threads(1)
    detector = SharedDetector(setting.weights, setting.folder / "shared")
    steps = planned_steps(setting)
    first = next(iter(task.measured.values()))
    cfg = variant_config(detector.cfg, *first, iterations=steps, seed=task.seed)
    start = start_of(setting, detector, cfg)
    heads = mask_branch(cfg, start)
    began_s = time.monotonic()
    teach(heads, cfg, detector, setting.scenes)
    seconds = time.monotonic() - began_s
    for name, (number, key) in task.measured.items():
        cfg = variant_config(detector.cfg, number, key, iterations=steps, seed=task.seed)
        as_measured = mask_branch(measured_config(cfg, row_of(number, key)), start)
        as_measured.load_state_dict(heads.state_dict())
        found = look(as_measured, detector, setting.images)
        keep(result_file(setting, name), {"training_s": seconds, "steps": steps, "found": found})
    return task


def _is_done(setting: Setting, task: Task) -> bool:
    return all(result_file(setting, name).is_file() for name in task.measured)
