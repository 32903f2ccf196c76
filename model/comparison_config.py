"""Configuration keys of the compared methods, on top of detectron2's defaults."""

from __future__ import annotations

import importlib.util

from detectron2.config import CfgNode


def add_comparison_config(cfg: CfgNode) -> None:
    """Add detectron2's PointRend keys and ours under ``MODEL.COMPARISON``; one comment each."""
    # A part of detectron2 that some distributions leave out; only PointRend's configurations need its keys.
    if importlib.util.find_spec("detectron2.projects.point_rend") is not None:
        from detectron2.projects.point_rend import add_pointrend_config

        add_pointrend_config(cfg)
    cfg.MODEL.COMPARISON = node = CfgNode()
    # Mask Scoring R-CNN: weight of the loss of the predicted mask IoU, and width of its fully connected layers.
    node.MASK_IOU_WEIGHT = 1.0
    node.MASK_IOU_FC_DIM = 1024
    # BMask R-CNN: weights of the boundary's cross entropy and dice losses.
    node.BOUNDARY_CROSS_ENTROPY_WEIGHT = 1.0
    node.BOUNDARY_DICE_WEIGHT = 1.0
