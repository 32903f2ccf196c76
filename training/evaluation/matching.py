"""Greedy matching as COCO and LVIS define it, for all IoU thresholds and area ranges at once.

In order of falling score, a detection takes the truth of highest IoU that is still free, a truth that counts
before one that is ignored; of equal IoUs the later one. A detection and a truth that are candidates of nobody else
need no order at all: they are decided together, which is nearly all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.evaluation.objects import IOU_THRESHOLDS, Objects
from training.evaluation.overlaps import Pairs


@dataclass(frozen=True, slots=True)
class Matches:
    """bool A x T x N each: which detections matched, and which do not count."""

    matched: np.ndarray
    ignored: np.ndarray


def match(truth: Objects, found: Objects, pairs: Pairs) -> Matches:
    """Match detections that are sorted by category, image and falling score to truths, by their candidate pairs."""
    unwanted = truth.outside_px() | truth.ignore | truth.crowd  # A x N
    outside = found.outside_px() | found.ignore
    shape = (len(outside), len(IOU_THRESHOLDS), len(found))
    result = Matches(np.zeros(shape, bool), np.zeros(shape, bool))
    rivals = np.bincount(pairs.truth, minlength=len(truth))[pairs.truth]
    choices = np.bincount(pairs.found, minlength=len(found))[pairs.found]
    simple = (choices == 1) & ((rivals == 1) | truth.crowd[pairs.truth])
    _match_alone(result, pairs, simple, unwanted)
    _match_in_order(result, pairs, ~simple, unwanted, truth.crowd)
    result.ignored[:] |= ~result.matched & outside[:, None]
    return result


def _match_alone(result: Matches, pairs: Pairs, chosen: np.ndarray, unwanted: np.ndarray) -> None:
    found, truth = pairs.found[chosen], pairs.truth[chosen]
    hit = pairs.iou[chosen] >= IOU_THRESHOLDS[:, None]  # T x P
    result.matched[:, :, found] = hit
    result.ignored[:, :, found] = hit & unwanted[:, None, truth]


def _match_in_order(result: Matches, pairs: Pairs, chosen: np.ndarray, unwanted: np.ndarray, crowd: np.ndarray) -> None:
    found, truth, iou = pairs.found[chosen], pairs.truth[chosen], pairs.iou[chosen]
    order = np.lexsort((truth, iou, found))  # a detection's best candidate last
    found, truth, iou = found[order], truth[order], iou[order]
    starts = np.flatnonzero(np.concatenate(([True], found[1:] != found[:-1]))) if len(found) else found
    taken = np.zeros((len(unwanted), len(IOU_THRESHOLDS), len(crowd) or 1), bool)
    for start, stop in zip(starts, np.concatenate((starts[1:], [len(found)])), strict=False):
        candidates = truth[start:stop]
        hit = (iou[start:stop] >= IOU_THRESHOLDS[:, None])[None]  # 1 x T x C
        free = hit & ~(taken[:, :, candidates] & ~crowd[candidates])
        best, counts = _best(free, unwanted[:, candidates])
        area, threshold = np.nonzero(best >= 0)
        winner = candidates[best[area, threshold]]
        taken[area, threshold, winner] = True
        result.matched[area, threshold, found[start]] = True
        result.ignored[area, threshold, found[start]] = ~counts[area, threshold]


def _best(free: np.ndarray, unwanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A x T index of the best free candidate or -1, A x T whether it counts); candidates come best last."""
    ranks = np.arange(1, free.shape[2] + 1)
    wanted = np.max(ranks * (free & ~unwanted[:, None]), axis=2)
    any_free = np.max(ranks * free, axis=2)
    return np.where(wanted > 0, wanted, any_free) - 1, wanted > 0
