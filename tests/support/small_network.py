"""A whole Mask Transfiner that builds and runs in a blink: 32 channels, two classes, 64-pixel inputs."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import nn

from model.config import get_config
from model.network import build_network

CLASSES = ("gear", "leaf")


def small_config() -> CfgNode:
    """The released preset, narrow, on EfficientNet-Lite0."""
    cfg = get_config("released")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_efficientnet_lite_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.RPN.CONV_DIMS = [32]
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(CLASSES)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.TRANSFINER.ENCODER_FFN_DIM = 32
    cfg.MODEL.TRANSFINER.INCOHERENCE_DIM = 16
    # Random weights are undecided everywhere: only the coarsest level gets nodes, or sequences would be long.
    cfg.MODEL.TRANSFINER.THRESHOLDS_TEST = [0.5, 0.99, 0.99]
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.INPUT.MAX_SIZE_TEST = 128
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    return cfg


def small_model(seed: int = 0) -> nn.Module:
    """Its network with seeded random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(small_config()).eval()
