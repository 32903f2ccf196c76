"""From matches to numbers: precision at 101 recalls, averages by area, by category, and average recalls.

Source: COCO's evaluation (pycocotools) and LVIS's, whose arithmetic is the same. Absent values are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.evaluation.matching import Matches
from training.evaluation.objects import AREA_NAMES, IOU_THRESHOLDS, RECALL_THRESHOLDS, Objects, rank

_TINY = np.spacing(1)


@dataclass(frozen=True, slots=True)
class Curves:
    """precision: T x R x K x A; recall: T x K x A x M, for each number M of detections an image. NaN: no truth."""

    precision: np.ndarray
    recall: np.ndarray


def curves(truth: Objects, found: Objects, matches: Matches, categories: int, most: Sequence[int]) -> Curves:
    """Precision and recall of matched detections sorted by category, image and falling score."""
    wanted = ~(truth.outside_px() | truth.ignore | truth.crowd)  # A x N
    thresholds, areas = len(IOU_THRESHOLDS), len(wanted)
    precision = np.full((thresholds, len(RECALL_THRESHOLDS), categories, areas), np.nan)
    recall = np.full((thresholds, categories, areas, len(most)), np.nan)
    place = rank(found)
    starts = np.searchsorted(found.category, np.arange(categories + 1))
    for category in np.unique(truth.category):
        there = slice(starts[category], starts[category + 1])
        order = there.start + np.argsort(-found.score[there], kind="stable")
        counted = ~matches.ignored[:, :, order]
        hit = matches.matched[:, :, order]
        number = wanted[:, truth.category == category].sum(1)
        for area in np.flatnonzero(number):
            right, wrong = hit[area] & counted[area], ~hit[area] & counted[area]
            precision[:, :, category, area] = _precision(right, wrong, number[area])
            for column, limit in enumerate(most):
                recall[:, category, area, column] = right[:, place[order] < limit].sum(1) / number[area]
    return Curves(precision, recall)


def _precision(right: np.ndarray, wrong: np.ndarray, number: int) -> np.ndarray:
    """T x R: the highest precision at or beyond each recall, 0 where it is not reached. right, wrong: bool T x D."""
    hits, misses = np.cumsum(right, axis=1).astype(float), np.cumsum(wrong, axis=1).astype(float)
    precision = hits / (misses + hits + _TINY)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.concatenate((envelope, np.zeros((len(envelope), 1))), axis=1)
    reached = hits / number
    places = [np.searchsorted(row, RECALL_THRESHOLDS, side="left") for row in reached]
    return np.take_along_axis(envelope, np.array(places), axis=1)


def mean(values: np.ndarray) -> float:
    """Mean of the values that are there, NaN if none is."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")


def precisions(result: Curves, names: Sequence[str]) -> dict[str, float]:
    """AP, AP50, AP75, APs, APm, APl and ``AP/<category>``."""
    overall = result.precision[..., 0]
    values = {"AP": mean(overall), "AP50": mean(overall[0]), "AP75": mean(overall[5])}
    values |= {f"AP{name}": mean(result.precision[..., area]) for area, name in enumerate(AREA_NAMES) if area}
    return values | {f"AP/{name}": mean(overall[:, :, index]) for index, name in enumerate(names)}


def recalls(result: Curves, most: Sequence[int]) -> dict[str, float]:
    """AR at each number of detections an image, then ARs, ARm, ARl at the last of them."""
    values = {f"AR{limit}": mean(result.recall[:, :, 0, column]) for column, limit in enumerate(most)}
    return values | {f"AR{name}": mean(result.recall[:, :, area, -1]) for area, name in enumerate(AREA_NAMES) if area}
