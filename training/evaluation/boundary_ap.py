"""Boundary AP: COCO AP with the IoU replaced by min(mask IoU, boundary IoU).

Source: Boundary IoU (Cheng et al., CVPR 2021), as the reference API does it: the boundary is what `d` erosions with a
3x3 box remove, d = max(1, round(ratio * image diagonal)), the outside of the image counting as background; crowd
columns keep the plain mask IoU. The ratio is 0.02 for COCO and LVIS, 0.005 for Cityscapes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import minimum_filter1d

from training.evaluation.coco_ap import evaluate
from training.evaluation.coco_format import encode


def boundary_ap(truth: COCO, found: list[dict[str, Any]], *, ratio: float = 0.02) -> dict[str, float]:
    """The same names as `mask_ap`, under boundary IoU."""

    class Evaluation(_BoundaryEvaluation):
        dilation_ratio = ratio

    return evaluate(Evaluation, truth, found)


def boundary_width_px(height: int, width: int, ratio: float = 0.02) -> int:
    """d in pixels for an image of this size (round half to even, at least 1)."""
    return max(1, round(ratio * math.sqrt(height * height + width * width)))


def boundary_mask(mask_hw: np.ndarray, ratio: float = 0.02) -> np.ndarray:
    """The inner band of a bool H x W mask, bool H x W.

    Only the mask's own box is touched: everything outside it is background anyway. d erosions with a 3x3 box are one
    with a (2d+1) x (2d+1) box, which separates into rows and columns.
    """
    rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    if not len(rows):
        return np.zeros_like(mask_hw)
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    height, width = mask_hw.shape
    size = 2 * boundary_width_px(height, width, ratio) + 1
    inner = mask_hw[box].astype(np.uint8)
    for axis in (0, 1):
        inner = minimum_filter1d(inner, size, axis=axis, mode="constant", cval=0)
    boundary = np.zeros_like(mask_hw)
    boundary[box] = mask_hw[box] & (inner == 0)
    return boundary


class _BoundaryEvaluation(COCOeval):
    dilation_ratio = 0.02

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803 - pycocotools' names
        """detections x truths, detections in descending score, as the base class returns it."""
        mask_iou = super().computeIoU(imgId, catId)
        if len(mask_iou) == 0:
            return mask_iou
        truths = self._gts[imgId, catId]
        found = self._dts[imgId, catId]
        order = np.argsort([-one["score"] for one in found], kind="mergesort")[: self.params.maxDets[-1]]
        crowd = [int(one["iscrowd"]) for one in truths]
        boundary_iou = rle.iou(
            [self._boundary(found[i]) for i in order], [self._boundary(one) for one in truths], crowd
        )
        return np.where(np.asarray(crowd, bool)[None], mask_iou, np.minimum(mask_iou, boundary_iou))

    def _boundary(self, record: dict[str, Any]) -> dict[str, Any]:
        if "boundary" not in record:
            record["boundary"] = encode(
                boundary_mask(rle.decode(record["segmentation"]).astype(bool), self.dilation_ratio)
            )
        boundary: dict[str, Any] = record["boundary"]
        return boundary
