"""One detected object, as every package sees it, and how much masks overlap (no torch here).

Shapes: H, W image size; h, w patch size; N, M masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class ProbabilityPatch:
    """The mask's probabilities as the network gave them, before they became a mask of the image.

    Attributes:
        values: float32 (h, w), from edge to edge of the box.
        box_xyxy: left, top, right, bottom in continuous pixels of the image; sampled bilinearly at pixel centres, as
            detectron2's `paste_masks_in_image` does, the values give the mask where they are at least one half.
    """

    values: np.ndarray
    box_xyxy: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Instance:
    """A refined detection on one image.

    Attributes:
        box_xyxy: left, top, right, bottom in continuous pixels of the (EXIF-transposed) image.
        label: class name, as the model's checkpoint spells it.
        score: detection confidence in [0, 1].
        mask_hw: bool array of the whole image's height x width.
        uncertainty: in [0, 1]; 0 when every refined boundary pixel is certain. Orders images for active learning.
        incoherent_nodes: number of incoherent quadtree nodes, on all levels together; None when not known.
        probabilities: of the mask; None when they are not known, as for objects joined from several tiles.
    """

    box_xyxy: tuple[float, float, float, float]
    label: str
    score: float
    mask_hw: np.ndarray
    uncertainty: float = 0.0
    incoherent_nodes: int | None = None
    probabilities: ProbabilityPatch | None = None

    def __post_init__(self) -> None:
        if self.mask_hw.ndim != 2 or self.mask_hw.dtype != np.bool_:
            shape = f"{self.mask_hw.dtype} of shape {self.mask_hw.shape}"
            raise ValueError(f"mask_hw must be a bool array of height x width, got {shape}")


def sample_patch(
    values_hw: np.ndarray, box_xyxy: tuple[float, float, float, float], y_px: np.ndarray, x_px: np.ndarray
) -> np.ndarray:
    """Sample a patch at a grid of places, as detectron2's `paste_masks_in_image` samples it at pixel centres.

    Args:
        values_hw: float (h, w), probabilities that cover the box edge to edge.
        box_xyxy: left, top, right, bottom in pixel edges.
        y_px: (H,) of the grid's rows, in pixel edges: a pixel's centre is at a half.
        x_px: (W,) of its columns.

    Returns:
        Float32, H x W: bilinear between the centres of the patch's cells, falling to 0 outside of the box.
    """
    left, top, right, bottom = box_xyxy
    if not (right > left and bottom > top):
        return np.zeros((len(y_px), len(x_px)), dtype=np.float32)
    values_hw = np.asarray(values_hw, dtype=np.float32)
    rows = _weights(values_hw.shape[0], top, bottom, y_px)
    columns = _weights(values_hw.shape[1], left, right, x_px)
    return np.asarray(rows @ values_hw @ columns.T)


def _weights(cells: int, start: float, end: float, at_px: np.ndarray) -> np.ndarray:
    """Bilinear weights (places, cells) of the cells of a box from `begin` to `end`."""
    at = (at_px - start) / (end - start) * cells - 0.5
    return np.clip(1 - np.abs(at[:, None] - np.arange(cells)), 0, 1).astype(np.float32)


Box = tuple[int, int, int, int]


def box_of(mask_hw: np.ndarray) -> Box:
    """Left, top, right, bottom of a bool H x W mask in pixel edges; (0, 0, 0, 0) when it is empty."""
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def window_of(mask_hw: np.ndarray, margin_px: int) -> tuple[slice, slice]:
    """Rows and columns of a bool H x W mask's box with a margin, as far as the image reaches."""
    left, top, right, bottom = box_of(mask_hw)
    rows = slice(max(top - margin_px, 0), min(bottom + margin_px, mask_hw.shape[0]))
    return rows, slice(max(left - margin_px, 0), min(right + margin_px, mask_hw.shape[1]))


def iou(mask_hw: np.ndarray, other_hw: np.ndarray) -> float:
    """Intersection over union of two bool H x W masks; 0 when both are empty."""
    return float(iou_matrix([mask_hw], [other_hw])[0, 0])


def iou_matrix(masks: Sequence[np.ndarray], other_masks: Sequence[np.ndarray]) -> np.ndarray:
    """Intersection over union of N masks with M others, bool H x W each: float64 (N, M)."""
    result = np.zeros((len(masks), len(other_masks)))
    measures = [_MaskMeasure(mask_hw) for mask_hw in masks]
    other_measures = [_MaskMeasure(mask_hw) for mask_hw in other_masks]
    for row, measure in enumerate(measures):
        for column, other_measure in enumerate(other_measures):
            intersection = measure.intersection(other_measure)
            if intersection:
                result[row, column] = intersection / (measure.area + other_measure.area - intersection)
    return result


class _MaskMeasure:
    """A mask with its box and area."""

    def __init__(self, mask_hw: np.ndarray) -> None:
        self.mask_hw = mask_hw
        self.box = left, top, right, bottom = box_of(mask_hw)
        self.area = int(np.count_nonzero(mask_hw[top:bottom, left:right]))

    def intersection(self, measure: _MaskMeasure) -> int:
        left, top = max(self.box[0], measure.box[0]), max(self.box[1], measure.box[1])
        right, bottom = min(self.box[2], measure.box[2]), min(self.box[3], measure.box[3])
        if left >= right or top >= bottom:
            return 0
        window = slice(top, bottom), slice(left, right)
        return int(np.count_nonzero(self.mask_hw[window] & measure.mask_hw[window]))
