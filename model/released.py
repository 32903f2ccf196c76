"""How to recognise a checkpoint that the authors of Mask Transfiner released.

The expected names and shapes come from our own networks, built without memory on torch's meta device, so that there
is no table to keep in step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from detectron2.config import CfgNode
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES
from torch import Tensor

from model.checkpoint_metadata import CheckpointError
from model.config import get_config
from model.network import build_network
from model.releases import ARCHITECTURES
from model.state_keys import KeyReport, compare_keys

MASK_PREDICTOR = "roi_heads.mask_head.predictor.weight"
# The tensors whose first dimension counts classes, and how: (rows per class, rows for the background).
CLASS_ROWS = {
    MASK_PREDICTOR: (1, 0),
    "roi_heads.box_predictor.cls_score.weight": (1, 1),
    "roi_heads.box_predictor.bbox_pred.weight": (4, 0),
}


def released_config(config: str, num_classes: int) -> CfgNode:
    """The effective configuration of an architecture for so many classes."""
    cfg = get_config(config)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.WEIGHTS = ""
    return cfg


@cache
def expected_state(config: str, num_classes: int) -> Mapping[str, Tensor]:
    """Names and shapes of an architecture's weights, as tensors without memory (`meta` device)."""
    cfg = released_config(config, num_classes)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return dict(build_network(cfg).state_dict())


def count_classes(state: Mapping[str, Tensor]) -> int:
    """The number of classes the weights were trained for.

    Raises:
        CheckpointError: the tensors that tell it are absent or disagree.
    """
    counts = {}
    for name, (per_class, background) in CLASS_ROWS.items():
        if name not in state:
            raise CheckpointError(f"not the weights of a Mask Transfiner: {name} is missing")
        rows = state[name].shape[0] - background
        counts[name] = rows / per_class
    if len(set(counts.values())) != 1 or not next(iter(counts.values())).is_integer():
        told = ", ".join(f"{count:g} by {name}" for name, count in counts.items())
        raise CheckpointError(f"the weights disagree on the number of classes: {told}")
    return int(counts[MASK_PREDICTOR])


def recognise(state: Mapping[str, Tensor]) -> tuple[str, KeyReport]:
    """The released architecture that fits a state dict best, and how it differs.

    Raises:
        CheckpointError: the number of classes cannot be told.
    """
    num_classes = count_classes(state)
    reports = {config: compare_keys(state, expected_state(config, num_classes)) for config in ARCHITECTURES}
    best = min(reports, key=lambda config: reports[config].differences)
    return best, reports[best]


def known_classes(num_classes: int) -> tuple[str, ...] | None:
    """Names for the class counts of the releases (80: COCO, 1230: LVIS v0.5), else None."""
    coco = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    lvis = [category["name"] for category in LVIS_CATEGORIES]
    return {len(coco): tuple(coco), len(lvis): tuple(lvis)}.get(num_classes)
