"""How many steps fit into the minutes: every variant is timed for a moment before the run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from torch import nn

from training.benchmark.directions.looking import look
from training.benchmark.directions.planning import PLAN_FILE, Setting, keep, planned_steps, tasks
from training.benchmark.directions.shared import SharedDetector
from training.benchmark.directions.starting import start_of
from training.benchmark.directions.teaching import mask_branch, teach
from training.benchmark.directions.variants import variant_config

LEAST_STEPS = 60  # less teaches a refinement nothing
SHARE_OF_BUDGET = 0.9  # what the trainings' speed, measured beforehand, is trusted with


def fitted_steps(setting: Setting, detector: SharedDetector, spent_s: float, tell: Callable[[str], object]) -> int:
    """Given, planned by an earlier start of this run, or fitted to the minutes by timing every variant for a moment."""
    file = setting.folder / PLAN_FILE
    if setting.steps or file.is_file():
        return planned_steps(setting)
    tell("timing each variant for a moment")
    step_s, fixed_s = _timed(setting, detector)
    wanted_s = setting.minutes * 60 * SHARE_OF_BUDGET - spent_s
    fitting = int((wanted_s * setting.processes / setting.seeds - fixed_s) / step_s)
    steps = max(LEAST_STEPS, fitting)
    if fitting < LEAST_STEPS:
        tell(
            f"{setting.minutes:g} minutes are too few for {LEAST_STEPS} steps a training; it will take longer. "
            "A higher --minutes, fewer --images or a quieter machine help"
        )
    facts = {
        "steps": steps,
        "seconds_a_step_of_all": step_s,
        "seconds_to_measure_all": fixed_s,
        "load_average": os.getloadavg(),
        "minutes": setting.minutes,
    }
    keep(file, facts)
    tell(f"{steps} steps a training fit into {setting.minutes:g} minutes")
    return steps


def _timed(setting: Setting, detector: SharedDetector) -> tuple[float, float]:
    """(seconds of one step of every training, seconds to measure every row), of one seed and one process."""
    torch.set_num_threads(1)
    steps_s = looks_s = 0.0
    for task in tasks(setting, 4):
        if task.seed:
            break
        cfg = variant_config(detector.cfg, *next(iter(task.measured.values())), iterations=4, seed=0)
        heads = mask_branch(cfg, start_of(setting, detector, cfg))
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
