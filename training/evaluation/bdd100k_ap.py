"""BDD100K instance AP, in memory: COCO's averages over a matching of its own.

Source: bdd100k 1.0.1, eval/ins_seg. All detections of an image share one bitmask, the higher score on top, so none
overlap. IoU is plain, for crowds too; a detection takes the truth of highest IoU, ignored ones included, and is counted
wrong if that is below the threshold; a truth marked as crowd counts like any other and may be taken several times.

A bitmask is H x W x 4, uint8: category, attributes (1 ignored, 2 crowd), instance number in 16 bits (0: nothing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.evaluation.matching import Matches
from training.evaluation.objects import AREA_RANGES_PX, IOU_THRESHOLDS, Objects, rank
from training.evaluation.precision import curves, precisions, recalls

CATEGORIES = (
    "pedestrian",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)  # numbered from 1
IGNORED, CROWD = 1, 2
_MOST = (1, 10, 100)


@dataclass(frozen=True, slots=True)
class Bitmask:
    """One image's instances: `numbers` int H x W, 1 for the first, 0 for none; category, attributes, area of each."""

    numbers: np.ndarray
    category: np.ndarray
    attributes: np.ndarray
    area: np.ndarray


def parsed(bitmask: np.ndarray, order: Sequence[int] | None = None) -> tuple[Bitmask, np.ndarray]:
    """The instances of a bitmask, by rising number or in the given order, and the numbers that were there.

    Raises:
        ValueError: no H x W x 4 bytes, or an instance has pixels of two categories or attributes.
    """
    if bitmask.ndim != 3 or bitmask.shape[2] != 4 or bitmask.dtype != np.uint8:
        raise ValueError(f"a bitmask is an 8-bit RGBA image, this has shape {bitmask.shape}, {bitmask.dtype}")
    raw = (bitmask[..., 2].astype(np.int64) << 8) + bitmask[..., 3]
    there, first, areas = np.unique(raw, return_index=True, return_counts=True)
    chosen = np.array([one for one in (there if order is None else order) if one and one in there], np.int64)
    places = np.searchsorted(there, chosen)
    table = np.zeros(int(there[-1]) + 1, np.int64)
    table[chosen] = np.arange(1, len(chosen) + 1)
    category, attributes = (bitmask[..., layer].reshape(-1)[first[places]].astype(int) for layer in (0, 1))
    numbers = table[raw]
    for layer, values in ((0, category), (1, attributes)):
        mixed = (bitmask[..., layer] != np.append(0, values)[numbers]) & (numbers > 0)
        if mixed.any() and (order is None or layer == 0):
            raise ValueError(f"instance {raw[mixed][0]} has pixels of two {('categories', 'attributes')[layer]}")
    return Bitmask(numbers, category, attributes, areas[places].astype(float)), chosen


def merged(masks: np.ndarray, categories: Sequence[int], scores: Sequence[float]) -> np.ndarray:
    """The bitmask of overlapping detections (bool N x H x W), number n + 1 for the n-th: higher scores on top."""
    bitmask = np.zeros((*masks.shape[1:], 4), np.uint8)
    for index in np.argsort(np.asarray(scores), kind="stable"):
        number = int(index) + 1
        bitmask[masks[index]] = (categories[index], 0, number >> 8, number & 255)
    return bitmask


class Bdd100kEvaluation:
    """Collects images, in the order of their names; `numbers` evaluates what was collected."""

    def __init__(self) -> None:
        self._truth: list[Objects] = []
        self._found: list[Objects] = []
        self._matches: list[Matches] = []

    def add(self, truth: np.ndarray, found: np.ndarray, scores: dict[int, float]) -> None:
        """Take in one image: two bitmasks, and the scores of the detections by their number in `found`.

        Raises:
            ValueError: a bitmask is malformed, or their sizes differ.
        """
        if truth.shape != found.shape:
            raise ValueError(f"the bitmasks differ in size: truth {truth.shape[:2]}, detections {found.shape[:2]}")
        real, _ = parsed(truth)
        ranked = sorted(scores, key=lambda number: scores[number], reverse=True)
        seen, numbers = parsed(found, ranked)
        image = len(self._truth)
        ours = _objects(real, image, np.zeros(len(real.area)), (real.attributes & IGNORED) > 0)
        theirs = _objects(
            seen, image, np.array([scores[int(one)] for one in numbers], float), np.zeros(len(numbers), bool)
        )
        matches = _matched(ours, theirs, _iou(seen, real), (real.attributes & CROWD) > 0)
        self._truth.append(ours)
        self._found.append(theirs)
        self._matches.append(matches)

    def join(self, other: Bdd100kEvaluation) -> None:
        """Take in what another evaluation collected, as if its images had been added here."""
        before = len(self._truth)
        self._truth += [replace(one, image=one.image + before) for one in other._truth]
        self._found += [replace(one, image=one.image + before) for one in other._found]
        self._matches += other._matches

    def numbers(self) -> dict[str, float]:
        """COCO's 12 numbers and ``AP/<class>``: fractions, NaN where there is no truth."""
        truth, found = _joined(self._truth), _joined(self._found)
        truth = truth[(truth.category >= 0) & (truth.category < len(CATEGORIES))]
        order = np.lexsort((-found.score, found.image, found.category))
        order = order[(found.category[order] >= 0) & (found.category[order] < len(CATEGORIES))]
        order = order[rank(found[order]) < _MOST[-1]]
        matches = Matches(
            np.concatenate([one.matched for one in self._matches], axis=2)[:, :, order],
            np.concatenate([one.ignored for one in self._matches], axis=2)[:, :, order],
        )
        outcome = curves(truth, found[order], matches, len(CATEGORIES), _MOST)
        return precisions(outcome, CATEGORIES) | recalls(outcome, _MOST)


def _objects(bitmask: Bitmask, image: int, scores: np.ndarray, ignore: np.ndarray) -> Objects:
    count = len(bitmask.area)
    nobody = np.zeros(count, bool)
    return Objects(np.full(count, image), bitmask.category - 1, bitmask.area, scores, nobody, ignore)


def _joined(parts: list[Objects]) -> Objects:
    empty = np.zeros(0)
    none = Objects(empty.astype(int), empty.astype(int), empty, empty, empty.astype(bool), empty.astype(bool))
    fields = ("image", "category", "area", "score", "crowd", "ignore")
    return Objects(*(np.concatenate([getattr(one, name) for one in [none, *parts]]) for name in fields))


def _iou(found: Bitmask, truth: Bitmask) -> np.ndarray:
    """detections x truths."""
    columns = len(truth.area) + 1
    shared = np.bincount(
        (found.numbers * columns + truth.numbers).ravel(), minlength=(len(found.area) + 1) * columns
    ).reshape(-1, columns)[1:, 1:]
    return shared / (found.area[:, None] + truth.area[None] - shared)


def _matched(truth: Objects, found: Objects, iou: np.ndarray, crowd: np.ndarray) -> Matches:
    """Detections in order of falling score; see the module's legend."""
    shape = (len(AREA_RANGES_PX), len(IOU_THRESHOLDS), len(found))
    result = Matches(np.zeros(shape, bool), np.zeros(shape, bool))
    unwanted = truth.outside_px() | truth.ignore
    for category in np.intersect1d(found.category, truth.category):
        rows, columns = np.flatnonzero(found.category == category), np.flatnonzero(truth.category == category)
        for level, threshold in enumerate(IOU_THRESHOLDS):
            left = iou[np.ix_(rows, columns)].copy()
            for row, index in enumerate(rows):
                best = int(np.argmax(left[row]))
                if left[row, best] < threshold:
                    continue
                result.matched[:, level, index] = True
                result.ignored[:, level, index] = unwanted[:, columns[best]]
                if not crowd[columns[best]]:
                    left[:, best] = 0
    result.ignored[:] |= ~result.matched & found.outside_px()[:, None]
    return result
