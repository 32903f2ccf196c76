"""Configuration keys of the compared methods and of the query-based detector, on top of detectron2's defaults."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode

from model.requirements import FIXES, MissingRequirementError


def _pointrend_keys() -> Callable[[CfgNode], None]:
    """The function that adds PointRend's keys, from the one file of that project that needs only detectron2.

    Importing the project's package would import OpenCV, too (model/network.py does, to build a PointRend); the keys
    have to be there always, since files of configurations that hold them have to be readable everywhere.

    Raises:
        MissingRequirementError: the detectron2 at hand comes without its projects.
    """
    package = importlib.util.find_spec("detectron2.projects.point_rend")
    if package is None or package.origin is None:
        raise MissingRequirementError(f"detectron2 has no projects/point_rend; fix: {FIXES['detectron2']}.")
    place = Path(package.origin).with_name("config.py")
    spec = importlib.util.spec_from_file_location("model.pointrend_config", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    add: Callable[[CfgNode], None] = module.add_pointrend_config
    return add


def add_comparison_config(cfg: CfgNode) -> None:
    """Add detectron2's PointRend keys, and ours under ``MODEL.COMPARISON`` and ``MODEL.DETR``; one comment each."""
    _pointrend_keys()(cfg)
    cfg.MODEL.COMPARISON = node = CfgNode()
    # Mask Scoring R-CNN: weight of the loss of the predicted mask IoU, and width of its fully connected layers.
    node.MASK_IOU_WEIGHT = 1.0
    node.MASK_IOU_FC_DIM = 1024
    # BMask R-CNN: weights of the boundary's cross entropy and dice losses.
    node.BOUNDARY_CROSS_ENTROPY_WEIGHT = 1.0
    node.BOUNDARY_DICE_WEIGHT = 1.0

    # The query-based detector (Deformable DETR, model/detectors/query_based.py), beside the usual ROI_HEADS keys.
    cfg.MODEL.DETR = node = CfgNode()
    # Object queries, that is the most objects of an image.
    node.QUERIES = 300
    # Layers of the encoder and of the decoder; width of their feed-forward parts; attention heads; dropout.
    node.LAYERS = 6
    node.FFN_DIM = 1024
    node.HEADS = 8
    node.DROPOUT = 0.1
    # FPN maps that the encoder reads.
    node.IN_FEATURES = ["p3", "p4", "p5", "p6"]
    # Each decoder layer corrects the boxes of the one before.
    node.BOX_REFINEMENT = True
    # Loss weights of classes (focal), box edges (L1) and box overlap (GIoU); the matching uses the same.
    node.CLASS_WEIGHT = 2.0
    node.L1_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
