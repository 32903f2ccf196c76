"""Which detection overlaps which truth: the pairs of equal image and category whose IoU can count at all.

Only pairs with IoU of at least the lowest threshold are kept. Nothing below can ever match, and most
pairs are far below: matching and, for boundary AP, the costly part of the IoU see a fraction of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as rle

from training.evaluation.objects import IOU_THRESHOLDS, Objects


@dataclass(frozen=True, slots=True)
class Pairs:
    """P candidate pairs, sorted by detection, then truth: indices into both, and their IoU."""

    found: np.ndarray
    truth: np.ndarray
    iou: np.ndarray


def groups(objects: Objects) -> tuple[np.ndarray, np.ndarray]:
    """(key of each group, where it starts and, last, where all end) of objects sorted by category and image."""
    keys = objects.category * _STRIDE + objects.image
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.zeros(0, int)
    return keys[starts], np.concatenate((starts, [len(keys)]))


_STRIDE = np.int64(1) << 40


def overlapping(truth: Objects, found: Objects, *, boxes: bool) -> Pairs:
    """Pairs of sorted truths and detections with IoU of masks (or boxes) >= 0.5; crowds: over the detection's area."""
    truth_keys, truth_starts = groups(truth)
    keys, starts = groups(found)
    _, ours, theirs = np.intersect1d(keys, truth_keys, assume_unique=True, return_indices=True)
    parts = []
    for one, other in zip(ours, theirs, strict=True):
        first, first_truth = starts[one], truth_starts[other]
        iou = _iou(truth, found, slice(first_truth, truth_starts[other + 1]), slice(first, starts[one + 1]), boxes)
        near, near_truth = np.nonzero(iou >= IOU_THRESHOLDS[0])
        if len(near):
            parts.append((near + first, near_truth + first_truth, iou[near, near_truth]))
    if not parts:
        return Pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _iou(truth: Objects, found: Objects, truths: slice, detections: slice, boxes: bool) -> np.ndarray:
    crowd = truth.crowd[truths].astype(np.uint8)
    if boxes:
        return np.asarray(rle.iou(found.boxes[detections], truth.boxes[truths], crowd))
    return np.asarray(rle.iou(list(found.masks[detections]), list(truth.masks[truths]), crowd))
