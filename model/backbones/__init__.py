"""Backbones that detectron2 lacks; importing this package registers them in its BACKBONE_REGISTRY."""

from model.backbones import efficientnet_lite, resnet_dcn, swin

__all__ = ["efficientnet_lite", "resnet_dcn", "swin"]
