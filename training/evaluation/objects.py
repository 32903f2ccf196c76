"""Truths or detections of a whole set as arrays: what matching works on, whatever file they came from.

Shapes: N objects, A area ranges, T IoU thresholds, K categories, R recall thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as rle

# COCO's and LVIS's: closed at both ends, in pixels.
AREA_RANGES_PX = ((0, 1e5**2), (0, 32**2), (32**2, 96**2), (96**2, 1e5**2))
AREA_NAMES = ("", "s", "m", "l")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True)
class Objects:
    """N truths or detections.

    Attributes:
        image: int64, index into the set's images.
        category: int64, index into the set's categories.
        area: float64, px; decides which of the area ranges counts the object.
        score: float64; zeros for truths.
        crowd: bool; a truth that any number of detections may match, with IoU over the detection's area.
        ignore: bool; a truth that need not be found. For a detection: not counted when nothing matches it.
        masks: compressed RLE, one each (empty where only boxes are compared).
        boxes: float64 N x 4, x, y, width, height.
    """

    image: np.ndarray
    category: np.ndarray
    area: np.ndarray
    score: np.ndarray
    crowd: np.ndarray
    ignore: np.ndarray
    masks: Sequence[dict[str, Any]] = field(default=())
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, chosen: np.ndarray) -> Objects:
        """A subset, in the order of `chosen` (int indices or a bool mask)."""
        indices = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return Objects(
            self.image[indices],
            self.category[indices],
            self.area[indices],
            self.score[indices],
            self.crowd[indices],
            self.ignore[indices],
            [self.masks[index] for index in indices] if len(self.masks) else (),
            self.boxes[indices] if len(self.boxes) else self.boxes,
        )

    def outside_px(self) -> np.ndarray:
        """bool A x N: whether an object's area lies outside each of the area ranges."""
        return np.array([(self.area < low) | (self.area > high) for low, high in AREA_RANGES_PX])


def tight_boxes(masks: Sequence[dict[str, Any]]) -> np.ndarray:
    """N x 4 boxes (x, y, width, height) of compressed masks."""
    return np.asarray(rle.toBbox(list(masks)), float).reshape(-1, 4) if len(masks) else np.zeros((0, 4))


def rank(found: Objects) -> np.ndarray:
    """Place of each object within its image and category; the objects are sorted by both."""
    key = np.stack((found.category, found.image))
    first = np.flatnonzero(np.concatenate(([True], (key[:, 1:] != key[:, :-1]).any(0)))[: len(found)])
    return np.arange(len(found)) - np.repeat(first, np.diff(np.concatenate((first, [len(found)]))))
