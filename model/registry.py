"""Importing this module registers the project's backbones, heads and architecture with detectron2."""

from model import backbones, comparisons, detectors, mask_head, meta_arch, roi_heads

__all__ = ["backbones", "comparisons", "detectors", "mask_head", "meta_arch", "roi_heads"]
