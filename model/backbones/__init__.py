"""Backbones that detectron2 lacks; importing this package registers them in its BACKBONE_REGISTRY."""

from model.backbones import efficientnet_lite  # noqa: F401  (imported for its registration)
