"""Training a mask head on the shared detector's features; the rest of the network is not even built.

Every row and every step of a seed sees the same scenes and the same boxes in the same order.
Shape shorthand: N truths of a scene.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

import model.network  # noqa: F401 - registers the heads
from training.benchmark.directions.shared import SharedDetector, SharedScene
from training.schedule import MovingAverage, build_optimizer, lr_factor, set_lr

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


def teach(
    heads: nn.Module,
    cfg: CfgNode,
    detector: SharedDetector,
    scenes: int,
    progress: Callable[[int], object] = int,
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
