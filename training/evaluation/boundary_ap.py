"""Boundary AP: COCO AP with the IoU replaced by min(mask IoU, boundary IoU)."""

from __future__ import annotations

from typing import Any

from pycocotools.coco import COCO

from training.evaluation.boundary import boundary_mask, boundary_width_px
from training.evaluation.coco_ap import coco_ap

__all__ = ["boundary_ap", "boundary_mask", "boundary_width_px"]


def boundary_ap(truth: COCO, found: list[dict[str, Any]], *, ratio: float = 0.02) -> dict[str, float]:
    """The same names as `mask_ap`, under boundary IoU."""
    return coco_ap(truth.dataset, found, "boundary", ratio=ratio)
