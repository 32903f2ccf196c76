"""Configuration keys of the compared methods and of the query-based detector, on top of detectron2's defaults."""

from __future__ import annotations

import importlib.util

from detectron2.config import CfgNode


def add_comparison_config(cfg: CfgNode) -> None:
    """Add detectron2's PointRend keys, and ours under ``MODEL.COMPARISON`` and ``MODEL.DETR``; one comment each."""
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
