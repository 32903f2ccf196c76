"""Match the detections of a set to its truths, and count: IoU, greedy matching, precision and recall.

Only pairs of equal image and category whose IoU is at least the lowest threshold are kept. Nothing below can ever
match, and most pairs are far below: matching and, for boundary AP, the costly part of the IoU see a fraction of them.

Matching is greedy, as COCO and LVIS define it, for all IoU thresholds and area ranges at once. In order of falling
score, a detection takes the truth of highest IoU that is still free, a truth that counts before one that is ignored; of
equal IoUs the later one. A detection and a truth that are candidates of nobody else need no order at all: they are
decided together, which is nearly all of them.

Matches become precision at 101 recalls, averages by area, by category, and average recalls, with the arithmetic of
COCO's evaluation (pycocotools), which is LVIS's, too. Absent values are NaN.

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

    def __getitem__(self, selection: np.ndarray) -> Objects:
        """A subset, in the order of `selection` (int indices or a bool mask)."""
        indices = np.flatnonzero(selection) if selection.dtype == bool else selection
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


def rank(detections: Objects) -> np.ndarray:
    """Place of each object within its image and category; the objects are sorted by both."""
    key = np.stack((detections.category, detections.image))
    starts = np.flatnonzero(np.concatenate(([True], (key[:, 1:] != key[:, :-1]).any(0)))[: len(detections)])
    return np.arange(len(detections)) - np.repeat(starts, np.diff(np.concatenate((starts, [len(detections)]))))


@dataclass(frozen=True, slots=True)
class Pairs:
    """P candidate pairs, sorted by detection, then truth: indices into both, and their IoU."""

    detection: np.ndarray
    truth: np.ndarray
    iou: np.ndarray


def groups(objects: Objects) -> tuple[np.ndarray, np.ndarray]:
    """Group objects sorted by category and image: each group's key; the groups' starts and, last, the total."""
    keys = objects.category * _STRIDE + objects.image
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.zeros(0, int)
    return keys[starts], np.concatenate((starts, [len(keys)]))


_STRIDE = np.int64(1) << 40


def overlapping_pairs(truth: Objects, detections: Objects, *, boxes: bool) -> Pairs:
    """Pairs of sorted truths and detections with IoU of masks (or boxes) >= 0.5; crowds: over the detection's area."""
    truth_keys, truth_starts = groups(truth)
    keys, starts = groups(detections)
    _, ours, theirs = np.intersect1d(keys, truth_keys, assume_unique=True, return_indices=True)
    parts = []
    for our_part, their_part in zip(ours, theirs, strict=True):
        first_detection, first_truth = starts[our_part], truth_starts[their_part]
        iou = _iou(
            truth,
            detections,
            slice(first_truth, truth_starts[their_part + 1]),
            slice(first_detection, starts[our_part + 1]),
            boxes,
        )
        near_detections, near_truths = np.nonzero(iou >= IOU_THRESHOLDS[0])
        if len(near_detections):
            parts.append(
                (near_detections + first_detection, near_truths + first_truth, iou[near_detections, near_truths])
            )
    if not parts:
        return Pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _iou(truth: Objects, detections: Objects, truth_part: slice, detection_part: slice, boxes: bool) -> np.ndarray:
    crowd = truth.crowd[truth_part].astype(np.uint8)
    if boxes:
        return np.asarray(rle.iou(detections.boxes[detection_part], truth.boxes[truth_part], crowd))
    return np.asarray(rle.iou(list(detections.masks[detection_part]), list(truth.masks[truth_part]), crowd))


@dataclass(frozen=True, slots=True)
class Matches:
    """Which detections matched, and which do not count: bool A x T x N each."""

    matched: np.ndarray
    ignored: np.ndarray


def match_detections(truth: Objects, detections: Objects, pairs: Pairs) -> Matches:
    """Match detections that are sorted by category, image and falling score to truths, by their candidate pairs."""
    is_ignored = truth.outside_px() | truth.ignore | truth.crowd  # A x N
    is_outside = detections.outside_px() | detections.ignore
    shape = (len(is_outside), len(IOU_THRESHOLDS), len(detections))
    result = Matches(np.zeros(shape, bool), np.zeros(shape, bool))
    rivals = np.bincount(pairs.truth, minlength=len(truth))[pairs.truth]
    choices = np.bincount(pairs.detection, minlength=len(detections))[pairs.detection]
    is_simple = (choices == 1) & ((rivals == 1) | truth.crowd[pairs.truth])
    _match_alone(result, pairs, is_simple, is_ignored)
    _match_in_order(result, pairs, ~is_simple, is_ignored, truth.crowd)
    result.ignored[:] |= ~result.matched & is_outside[:, None]
    return result


def _match_alone(result: Matches, pairs: Pairs, selection: np.ndarray, is_ignored: np.ndarray) -> None:
    detection, truth = pairs.detection[selection], pairs.truth[selection]
    hit = pairs.iou[selection] >= IOU_THRESHOLDS[:, None]  # T x P
    result.matched[:, :, detection] = hit
    result.ignored[:, :, detection] = hit & is_ignored[:, None, truth]


def _match_in_order(
    result: Matches, pairs: Pairs, selection: np.ndarray, is_ignored: np.ndarray, crowd: np.ndarray
) -> None:
    detection, truth, iou = pairs.detection[selection], pairs.truth[selection], pairs.iou[selection]
    order = np.lexsort((truth, iou, detection))  # a detection's best candidate last
    detection, truth, iou = detection[order], truth[order], iou[order]
    starts = np.flatnonzero(np.concatenate(([True], detection[1:] != detection[:-1]))) if len(detection) else detection
    is_taken = np.zeros((len(is_ignored), len(IOU_THRESHOLDS), len(crowd) or 1), bool)
    for start, stop in zip(starts, np.concatenate((starts[1:], [len(detection)])), strict=False):
        candidates = truth[start:stop]
        hit = (iou[start:stop] >= IOU_THRESHOLDS[:, None])[None]  # 1 x T x C
        is_free = hit & ~(is_taken[:, :, candidates] & ~crowd[candidates])
        best_candidate, counts = _best(is_free, is_ignored[:, candidates])
        area, threshold = np.nonzero(best_candidate >= 0)
        winner = candidates[best_candidate[area, threshold]]
        is_taken[area, threshold, winner] = True
        result.matched[area, threshold, detection[start]] = True
        result.ignored[area, threshold, detection[start]] = ~counts[area, threshold]


def _best(is_free: np.ndarray, is_ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose the best free candidate, which come best last: A x T its index or -1, and A x T whether it counts."""
    ranks = np.arange(1, is_free.shape[2] + 1)
    best_counting = np.max(ranks * (is_free & ~is_ignored[:, None]), axis=2)
    best_free = np.max(ranks * is_free, axis=2)
    return np.where(best_counting > 0, best_counting, best_free) - 1, best_counting > 0


_TINY = np.spacing(1)


@dataclass(frozen=True, slots=True)
class Curves:
    """Precision T x R x K x A, and recall T x K x A x M at M numbers of detections an image; NaN without truth."""

    precision: np.ndarray
    recall: np.ndarray


def curves(truth: Objects, detections: Objects, matches: Matches, categories: int, limits: Sequence[int]) -> Curves:
    """Precision and recall of matched detections sorted by category, image and falling score."""
    is_required = ~(truth.outside_px() | truth.ignore | truth.crowd)  # A x N
    thresholds, areas = len(IOU_THRESHOLDS), len(is_required)
    precision = np.full((thresholds, len(RECALL_THRESHOLDS), categories, areas), np.nan)
    recall = np.full((thresholds, categories, areas, len(limits)), np.nan)
    place = rank(detections)
    starts = np.searchsorted(detections.category, np.arange(categories + 1))
    for category in np.unique(truth.category):
        class_slice = slice(starts[category], starts[category + 1])
        order = class_slice.start + np.argsort(-detections.score[class_slice], kind="stable")
        is_counted = ~matches.ignored[:, :, order]
        hit = matches.matched[:, :, order]
        truth_counts = is_required[:, truth.category == category].sum(1)
        for area in np.flatnonzero(truth_counts):
            right, wrong = hit[area] & is_counted[area], ~hit[area] & is_counted[area]
            precision[:, :, category, area] = _precision(right, wrong, truth_counts[area])
            for column, limit in enumerate(limits):
                recall[:, category, area, column] = right[:, place[order] < limit].sum(1) / truth_counts[area]
    return Curves(precision, recall)


def _precision(right: np.ndarray, wrong: np.ndarray, truth_count: int) -> np.ndarray:
    """T x R: the highest precision at or beyond each recall, 0 where it is not reached. right, wrong: bool T x D."""
    hits, misses = np.cumsum(right, axis=1).astype(float), np.cumsum(wrong, axis=1).astype(float)
    precision = hits / (misses + hits + _TINY)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.concatenate((envelope, np.zeros((len(envelope), 1))), axis=1)
    recall = hits / truth_count
    places = [np.searchsorted(row, RECALL_THRESHOLDS, side="left") for row in recall]
    return np.take_along_axis(envelope, np.array(places), axis=1)


def mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else float("nan")


def precisions(result: Curves, names: Sequence[str]) -> dict[str, float]:
    """AP, AP50, AP75, APs, APm, APl and ``AP/<category>``."""
    overall = result.precision[..., 0]
    values = {"AP": mean(overall), "AP50": mean(overall[0]), "AP75": mean(overall[5])}
    values |= {f"AP{name}": mean(result.precision[..., area]) for area, name in enumerate(AREA_NAMES) if area}
    return values | {f"AP/{name}": mean(overall[:, :, index]) for index, name in enumerate(names)}


def recalls(result: Curves, limits: Sequence[int]) -> dict[str, float]:
    """AR at each number of detections an image, then ARs, ARm, ARl at the last of them."""
    values = {f"AR{limit}": mean(result.recall[:, :, 0, column]) for column, limit in enumerate(limits)}
    return values | {f"AR{name}": mean(result.recall[:, :, area, -1]) for area, name in enumerate(AREA_NAMES) if area}
