"""The whole run: shared scenes, trainings, measurements; every finished part is kept, so a run goes on there.

How many steps fit into the minutes: every variant is timed for a moment before the run.

The common start of all rows: the detector's coarse mask, used to the smaller grid.

Training a mask head on the shared detector's features; the rest of the network is not even built.

Every row and every step of a seed sees the same scenes and the same boxes in the same order.
Shape shorthand: N truths of a scene.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import model.network  # noqa: F401 - registers the heads
from model.checkpoints.checkpoint import load_checkpoint
from model.files import replacing, write_text
from training.benchmark.ablations.plan import (
    PLAN_FILE,
    Setting,
    Task,
    measured_config,
    planned_steps,
    result_file,
    row_of,
    tasks,
    variant_config,
)
from training.benchmark.ablations.shared_detector import SharedDetector, SharedScene, detect_on_scenes
from training.engine.optimizer import MovingAverage, build_optimizer, lr_factor, set_lr
from training.metrics.parallel import map_in_processes


def run_ablations(setting: Setting, tell: Callable[[str], object], after_seed: Callable[[int], object]) -> int:
    """Do what has not been done; returns the steps of each training.

    Args:
        tell: hears what is being done. after_seed: hears how many seeds are complete, each time one is.
    """
    started_s = time.monotonic()
    detector = SharedDetector(setting.weights, setting.folder / "shared")
    _prepare(setting, detector, tell)
    train_common_start(setting, detector, tell)
    steps = fitted_steps(setting, detector, time.monotonic() - started_s, tell)
    left = [task for task in tasks(setting, steps) if not _is_done(setting, task)]
    total, begun_s = len(left), time.monotonic()
    arguments = [(setting, task) for task in left]
    for done, task in enumerate(map_in_processes(_work, arguments, setting.processes), 1):
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
    for done, _ in enumerate(map_in_processes(_see, parts, setting.processes), 1):
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
    start = starting_weights_of(setting, detector, cfg)
    heads = mask_branch(cfg, start)
    began_s = time.monotonic()
    train_mask_branch(heads, cfg, detector, setting.scenes)
    seconds = time.monotonic() - began_s
    for name, (number, key) in task.measured.items():
        cfg = variant_config(detector.cfg, number, key, iterations=steps, seed=task.seed)
        as_measured = mask_branch(measured_config(cfg, row_of(number, key)), start)
        as_measured.load_state_dict(heads.state_dict())
        results = detect_on_scenes(as_measured, detector, setting.images)
        content = {"training_s": seconds, "steps": steps, "found": results}
        write_text(result_file(setting, name), json.dumps(content))
    return task


def _is_done(setting: Setting, task: Task) -> bool:
    return all(result_file(setting, name).is_file() for name in task.measured)


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
    write_text(file, json.dumps(facts))
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
        heads = mask_branch(cfg, starting_weights_of(setting, detector, cfg))
        steps_s += _seconds_a_step(heads, cfg, detector, setting.scenes)
        seen = min(2, setting.images)
        began_s = time.monotonic()
        detect_on_scenes(heads, detector, seen)
        looks_s += len(task.measured) * setting.images * (time.monotonic() - began_s) / seen
    return steps_s, looks_s


def _seconds_a_step(heads: nn.Module, cfg: CfgNode, detector: SharedDetector, scenes: int) -> float:
    """Of the steps after the first, which warms up."""
    marks: list[float] = []
    train_mask_branch(heads, cfg, detector, scenes, lambda _: marks.append(time.monotonic()))
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def train_common_start(setting: Setting, detector: SharedDetector, tell: Callable[[str], object]) -> None:
    """The start of all rows whose coarse grid is half the detector's: its coarse mask, trained on that grid."""
    file = _coarse_file(setting, detector)
    if file.is_file():
        return
    tell(f"the coarse mask gets used to its smaller grid, {setting.coarse_steps} steps")
    torch.set_num_threads(1)
    cfg = variant_config(detector.cfg, 5, "depth-0", iterations=setting.coarse_steps, seed=0)
    heads = mask_branch(cfg, load_checkpoint(setting.weights).state)
    train_mask_branch(heads, cfg, detector, setting.scenes)
    with replacing(file) as unfinished:
        save_file({f"roi_heads.{name}": weight.contiguous() for name, weight in heads.state_dict().items()}, unfinished)


def starting_weights_of(setting: Setting, detector: SharedDetector, cfg: CfgNode) -> dict[str, Tensor]:
    """Weights of the coarse mask for a row's grid."""
    if cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION == detector.cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION:
        return load_checkpoint(setting.weights).state
    return load_file(_coarse_file(setting, detector))


def _coarse_file(setting: Setting, detector: SharedDetector) -> Path:
    return detector.folder / f"coarse-{setting.scenes}-{setting.coarse_steps}.safetensors"


STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
_COARSE = re.compile(r"roi_heads\.mask_head\.(mask_fcn\d+|deconv|predictor)\.")
JITTER = 0.06  # of a box's edges, as a share of its sides
LARGEST_NORM = 5.0


def mask_branch(cfg: CfgNode, start: dict[str, Tensor]) -> nn.Module:
    """RoI heads of a configuration of which the mask branch is used, starting from the detector's coarse mask weights.

    Args:
        start: a state of the detector; what is not of the coarse mask, or does not fit, is left aside.
    """
    torch.manual_seed(cfg.SEED)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    shapes = {name: ShapeSpec(channels=channels, stride=stride) for name, stride in STRIDES.items()}
    heads: nn.Module = build_roi_heads(cfg, shapes)
    own = heads.state_dict()
    fitting = {name.removeprefix("roi_heads."): value.float() for name, value in start.items() if _COARSE.match(name)}
    absent = [name for name in fitting if name not in own or own[name].shape != fitting[name].shape]
    if absent or not fitting:
        raise ValueError(
            f"the detector's coarse mask weights do not fit the variant ({', '.join(absent) or 'there are none'}); "
            "give a checkpoint of a Mask Transfiner with --weights"
        )
    heads.load_state_dict(fitting, strict=False)
    for name, parameter in heads.named_parameters():
        parameter.requires_grad = name.startswith("mask")
    return heads


def train_mask_branch(
    heads: nn.Module, cfg: CfgNode, detector: SharedDetector, scenes: int, progress: Callable[[int], object] = int
) -> None:
    """Train the mask branch for ``SOLVER.MAX_ITER`` steps on the first ``scenes`` training scenes, in place."""
    optimizer, average = build_optimizer(cfg, heads), MovingAverage(heads, cfg.TRAINING.EMA_DECAY)
    rng = np.random.default_rng([cfg.SEED, 7])
    steps, batch = cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH
    trained = [parameter for parameter in heads.parameters() if parameter.requires_grad]
    heads.train()
    for step in range(steps):
        chosen = [detector.load("train", int(index)) for index in rng.integers(scenes, size=batch)]
        proposals = [_proposals(scene, rng) for scene in chosen]
        set_lr(optimizer, lr_factor(cfg, step, step / steps))
        with EventStorage(step):
            losses = heads._forward_mask(_joined(chosen), proposals)  # type: ignore[operator]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(trained, LARGEST_NORM)
        optimizer.step()
        average.update(heads)
        progress(step + 1)
    heads.load_state_dict(average.state)


def _joined(scenes: list[SharedScene]) -> dict[str, Tensor]:
    return {name: torch.cat([scene.features[name] for scene in scenes]) for name in scenes[0].features}


def _proposals(scene: SharedScene, rng: np.random.Generator) -> Instances:
    """One box a truth: the detector's for every other of those it found, else the truth's, its edges moved a little."""
    boxes = scene.truth_boxes_xyxy.clone()
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes += sides * torch.from_numpy(rng.uniform(-JITTER, JITTER, boxes.shape)).float()
    take = torch.from_numpy(rng.random(len(boxes)) < 0.5)
    for detection, truth in enumerate(scene.partner.tolist()):
        if truth >= 0 and take[truth]:
            boxes[truth] = scene.boxes_xyxy[detection]
    height, width = scene.size_hw
    limited = Boxes(boxes)
    limited.clip((height, width))
    fields: dict[str, Any] = {
        "proposal_boxes": limited,
        "gt_boxes": Boxes(scene.truth_boxes_xyxy),
        "gt_classes": scene.truth_classes,
        "gt_masks": BitMasks(scene.masks),
    }
    return Instances((height, width), **fields)
