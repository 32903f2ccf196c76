"""Train and measure the mask heads of all compared rows; every finished part is kept, so a run goes on there.

Every row and every step of a seed sees the same scenes and the same boxes in the same order. Only the mask branch is
built, on the features of the shared detector. Shape shorthand: N truths of a scene.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
from training.benchmark.directions.shared_detector import SharedDetector, SharedScene, detect_on_scenes
from training.benchmark.recipe import overrides_when_measured
from training.benchmark.tables import TABLES, Row, as_list, digest
from training.engine.config import add_training_config, get_training_config
from training.engine.optimizer import MovingAverage, build_optimizer, lr_factor, set_lr
from training.metrics.parallel import map_in_processes

TABLE_NUMBERS = tuple(number for number, table in TABLES.items() if table.claims)
_SMALL = {"ENCODER_FFN_DIM": 128, "ENCODER_DROPOUT": 0.0, "SAMPLES_PER_LEVEL": 50, "TRAIN_INSTANCE_LIMIT": 10}
# A few hundred steps teach a sequence encoder less than the coarse mask knows, unless it begins with that mask; but
# where the cue "coarse" is what is compared, nodes may know it by their cues alone.
_COARSE_IS_COMPARED = (4,)
_LEARNING = {
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.WEIGHT_DECAY": 0.01,
    "SOLVER.WARMUP_ITERS": 20,
    "SOLVER.WARMUP_FACTOR": 0.05,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.IMS_PER_BATCH": 3,
    "TRAINING.OPTIMIZER": "AdamW",
    "TRAINING.SCHEDULE": "cosine",
    "TRAINING.EMA_DECAY": 0.98,
}
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
_COARSE = re.compile(r"roi_heads\.mask_head\.(mask_fcn\d+|deconv|predictor)\.")
JITTER = 0.06  # of a box's edges, as a share of its sides
LARGEST_NORM = 5.0


@dataclass(frozen=True)
class Setting:
    """Size of a run.

    Attributes:
        weights: the shared detector. folder: of the run. tables: which.
        steps: of every training. seeds: trainings of every row. scenes: for training. images: held out, to measure on.
        processes: with one thread each.
        coarse_steps: in which the detector's coarse mask first gets used to its smaller grid, once for all rows.
    """

    weights: Path
    folder: Path
    tables: tuple[int, ...] = TABLE_NUMBERS
    steps: int = 100
    seeds: int = 3
    scenes: int = 300
    images: int = 40
    processes: int = 2
    coarse_steps: int = 300

    def detector(self) -> SharedDetector:
        """The shared detector, its scenes in the run's folder."""
        return SharedDetector(self.weights, self.folder / "shared")

    def result_file(self, name: str) -> Path:
        """Where a measurement is kept; its scenes are part of its name."""
        return self.folder / "measured" / f"{name}-{self.scenes}-{self.images}-{self.coarse_steps}.json"


@dataclass(frozen=True)
class Task:
    """One training, and by name of each measurement the (table, row)s that it stands for."""

    seed: int
    measured: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


def compared_rows(numbers: tuple[int, ...] = TABLE_NUMBERS) -> list[tuple[int, Row]]:
    """Every row that takes part in a claim, once a table, in the tables' order."""
    return [
        (number, row)
        for number in numbers
        for row in TABLES[number].rows
        if any(row.key in claim for claim in TABLES[number].claims)
    ]


def tasks(setting: Setting) -> list[Task]:
    """All trainings, seed by seed; rows that are one training share it, those that are one measurement too."""
    detector = load_checkpoint(setting.weights).cfg
    planned: list[Task] = []
    for seed in range(setting.seeds):
        by_name: dict[str, Task] = {}
        for number, row in compared_rows(setting.tables):
            cfg = variant_config(detector, number, row.key, iterations=setting.steps, seed=seed)
            task = by_name.setdefault(_name(cfg), Task(seed))
            task.measured.setdefault(_name(measured_config(cfg, row)), []).append((number, row.key))
        planned += by_name.values()
    return planned


def variant_config(detector: CfgNode, number: int, key: str, *, iterations: int, seed: int) -> CfgNode:
    """Build the configuration of a row's mask head: the detector's channels, the paper's refinement, the row's change.

    Args:
        detector: the shared detector's configuration. number: of the table. key: of its row.
    """
    cfg: CfgNode = detector.clone()
    cfg.defrost()
    if "TRAINING" not in cfg:
        add_training_config(cfg)
    node = cfg.MODEL.TRANSFINER = get_training_config("ablations/base").MODEL.TRANSFINER.clone()
    for name, value in _SMALL.items():
        node[name] = value
    node.DECODER = "direct" if number in _COARSE_IS_COMPARED else "residual"
    node.INCOHERENCE_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM
    cfg.MODEL.ROI_HEADS.NAME = "TransfinerROIHeads"
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
    cfg.merge_from_list(as_list(_LEARNING))
    cfg.merge_from_list(as_list(TABLES[number].row(key).change))
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION //= 2
    node.LEVEL_SIZES = [size // 2 for size in node.LEVEL_SIZES]
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SEED = seed
    return cfg


def measured_config(trained: CfgNode, row: Row) -> CfgNode:
    """A row's configuration as it is measured, from the one that it is trained with."""
    cfg: CfgNode = trained.clone()
    cfg.merge_from_list(overrides_when_measured(row, miniature=True))
    return cfg


def _name(cfg: CfgNode) -> str:
    """Names a training or a measurement by all that decides its outcome, apart from the shared detector."""
    kept = {part: cfg[part].dump() for part in ("SOLVER", "TRAINING")}
    heads = {part: cfg.MODEL[part].dump() for part in ("TRANSFINER", "ROI_MASK_HEAD")}
    return digest(kept, heads, cfg.SEED)


def run_directions(setting: Setting, tell: Callable[[str], object]) -> None:
    """Do what has not been done; ``tell`` hears what is being done."""
    _see_scenes(setting, tell)
    train_common_start(setting, tell)
    left = [task for task in tasks(setting) if not all(setting.result_file(name).is_file() for name in task.measured)]
    begun_s = time.monotonic()
    for done, task in enumerate(map_in_processes(_work, [(setting, task) for task in left], setting.processes), 1):
        minutes = (time.monotonic() - begun_s) / done * (len(left) - done) / 60
        rows = ", ".join(f"table {number} {key}" for places in task.measured.values() for number, key in places)
        tell(f"{done} of {len(left)} trainings, about {minutes:.1f} min left: seed {task.seed}, {rows}")


def _see_scenes(setting: Setting, tell: Callable[[str], object]) -> None:
    parts = []
    for split, count in (("train", setting.scenes), ("val", setting.images)):
        absent = setting.detector().missing(split, count)
        parts += [(setting, split, absent[place : place + 20]) for place in range(0, len(absent), 20)]
    for done, _ in enumerate(map_in_processes(_see, parts, setting.processes), 1):
        tell(f"the shared detector has seen {done} of {len(parts)} parts of the scenes")


def _see(setting: Setting, split: str, indices: list[int]) -> None:
    torch.set_num_threads(1)
    setting.detector().compute(split, indices)


def _work(setting: Setting, task: Task) -> Task:
    """Train, measure, keep."""
    torch.set_num_threads(1)
    detector = setting.detector()
    places = {name: of_name[0] for name, of_name in task.measured.items()}
    first = next(iter(places.values()))
    cfg = variant_config(detector.cfg, *first, iterations=setting.steps, seed=task.seed)
    start = _starting_weights(setting, detector, cfg)
    heads = mask_branch(cfg, start)
    train_mask_branch(heads, cfg, detector, setting.scenes)
    for name, (number, key) in places.items():
        cfg = variant_config(detector.cfg, number, key, iterations=setting.steps, seed=task.seed)
        as_measured = mask_branch(measured_config(cfg, TABLES[number].row(key)), start)
        as_measured.load_state_dict(heads.state_dict())
        results = detect_on_scenes(as_measured, detector, setting.images)
        write_text(setting.result_file(name), json.dumps(results))
    return task


def train_common_start(setting: Setting, tell: Callable[[str], object]) -> None:
    """The start of all rows whose coarse grid is half the detector's: its coarse mask, trained on that grid."""
    detector = setting.detector()
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


def _starting_weights(setting: Setting, detector: SharedDetector, cfg: CfgNode) -> dict[str, Tensor]:
    """Weights of the coarse mask for a row's grid."""
    if cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION == detector.cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION:
        return load_checkpoint(setting.weights).state
    return load_file(_coarse_file(setting, detector))


def _coarse_file(setting: Setting, detector: SharedDetector) -> Path:
    return detector.folder / f"coarse-{setting.scenes}-{setting.coarse_steps}.safetensors"


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


def train_mask_branch(heads: nn.Module, cfg: CfgNode, detector: SharedDetector, scenes: int) -> None:
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
