"""Cityscapes instance AP, in memory; with boundaries as the Boundary IoU paper evaluates Cityscapes.

Source: cityscapesscripts 2.3.0, evalInstanceLevelSemanticLabeling. Unlike COCO: an overlap must be *above* the
threshold, the precision curve is integrated in steps over the distinct scores, instances under 100 px and groups need
not be found, and a detection nobody matches is forgiven if enough of it lies on void, groups or such instances.

Pixels of an instance image: 1000 * label + number for an instance, the label alone for a group and for stuff.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from training.evaluation.boundary import boundary_mask

LABELS = {
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
LARGEST_LABEL = 33
# Labels that Cityscapes leaves out of its evaluation; of a void label's numbered instances none is void.
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
THRESHOLDS = np.arange(0.5, 1.0, 0.05)
LEAST_PX = 100
RATIO = 0.005  # boundary width / image diagonal


@dataclass(slots=True)
class _Truth:
    """One instance or group of one class on one image, and the (score, overlap) of every detection that touches it."""

    needed: bool
    touched: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Found:
    """One detection: its score, its best overlap, and the share of it that lies on what is ignored."""

    score: float
    best: float
    forgiven: float


class CityscapesEvaluation:
    """Collects images; `numbers` evaluates what was collected."""

    def __init__(self, kind: Literal["segm", "boundary"] = "segm", ratio: float = RATIO) -> None:
        self.kind, self.ratio = kind, ratio
        self._truths: dict[int, list[_Truth]] = {label: [] for label in LABELS.values()}
        self._found: dict[int, list[_Found]] = {label: [] for label in LABELS.values()}

    def add(
        self,
        instance_ids: np.ndarray,
        masks: Sequence[np.ndarray],
        labels: Sequence[int],
        scores: Sequence[float],
    ) -> None:
        """Take in one image.

        Args:
            instance_ids: int H x W, the ground truth as in ``*_gtFine_instanceIds.png``.
            masks: bool H x W each, the detections.
            labels: Cityscapes label ids of the detections; others than the eight evaluated ones are left out.
            scores: of the detections.
        """
        ids, pixels = np.unique(instance_ids, return_counts=True)
        areas = dict(zip(ids.tolist(), pixels.tolist(), strict=True))
        truths = {one: _Truth(one >= 1000 and areas[one] >= LEAST_PX) for one in areas if _label(one) in self._truths}
        for one, truth in truths.items():
            self._truths[_label(one)].append(truth)
        band = self._band(instance_ids, truths) if self.kind == "boundary" else None
        band_areas = _counts(band) if band is not None else {}
        for mask, label, score in zip(masks, labels, scores, strict=True):
            if label in self._found and mask.any():
                touched = self._touched(instance_ids, band, mask, label, areas, band_areas)
                self._found[label].append(_record(touched, truths, areas, instance_ids[mask], float(score)))

    def join(self, other: CityscapesEvaluation) -> None:
        """Take in what another evaluation collected, as if its images had been added here."""
        for label in self._truths:
            self._truths[label] += other._truths[label]
            self._found[label] += other._found[label]

    def _band(self, instance_ids: np.ndarray, truths: dict[int, _Truth]) -> np.ndarray:
        """The boundaries of all truths, -1 elsewhere."""
        band = np.full(instance_ids.shape, -1, np.int64)
        for one in truths:
            band[boundary_mask(instance_ids == one, self.ratio)] = one
        return band

    def _touched(
        self,
        instance_ids: np.ndarray,
        band: np.ndarray | None,
        mask: np.ndarray,
        label: int,
        areas: dict[int, int],
        band_areas: dict[int, int],
    ) -> list[tuple[int, int, float]]:
        """(truth, shared pixels, overlap) of the truths of a class that a detection shares pixels with."""
        shared = _counts(instance_ids[mask])
        size = int(np.count_nonzero(mask))
        touched = [(t, n, n / (areas[t] + size - n)) for t, n in shared.items() if _label(t) == label]
        if band is None:
            return touched
        edge = boundary_mask(mask, self.ratio)
        edges, length = _counts(band[edge]), int(np.count_nonzero(edge))
        return [(t, n, min(iou, edges[t] / (band_areas[t] + length - edges[t]))) for t, n, iou in touched if t in edges]

    def numbers(self) -> dict[str, float]:
        """AP, AP50, AP75 and ``AP/<class>``, ``AP50/<class>``: fractions, NaN for a class without truth."""
        values = np.array([[self._ap(label, float(one)) for one in THRESHOLDS] for label in LABELS.values()])
        result = {"AP": _mean(values), "AP50": _mean(values[:, 0]), "AP75": _mean(values[:, 5])}
        result |= {f"AP/{name}": float(row.mean()) for name, row in zip(LABELS, values, strict=True)}
        return result | {f"AP50/{name}": float(row[0]) for name, row in zip(LABELS, values, strict=True)}

    def _ap(self, label: int, threshold: float) -> float:
        needed = [one for one in self._truths[label] if one.needed]
        if not needed:
            return float("nan")
        right, wrong, missed = [], [], 0
        for truth in needed:
            scores = sorted(score for score, overlap in truth.touched if overlap > threshold)
            missed += not scores
            right += scores[-1:]
            wrong += scores[:-1]
        wrong += [one.score for one in self._found[label] if one.best <= threshold and one.forgiven <= threshold]
        return _integrated(np.array(right), np.array(wrong), missed)


def _record(
    touched: list[tuple[int, int, float]],
    truths: dict[int, _Truth],
    areas: dict[int, int],
    under: np.ndarray,
    score: float,
) -> _Found:
    """Note a detection at the truths that it touches; sum up what of it is forgiven (a small group twice)."""
    forgiven = int(np.isin(under, VOID).sum())
    for truth, shared, overlap in touched:
        truths[truth].touched.append((score, overlap))
        forgiven += shared * ((truth < 1000) + (areas[truth] < LEAST_PX))
    best = max((overlap for _, _, overlap in touched), default=-1.0)
    return _Found(score, best, forgiven / len(under))


def _integrated(right: np.ndarray, wrong: np.ndarray, missed: int) -> float:
    """Area under precision over recall: each distinct score a point, half a step to either side, ending in (1, 0)."""
    thresholds = np.unique(np.concatenate((right, wrong)))
    if not len(thresholds):
        return 0.0
    hits = len(right) - np.searchsorted(np.sort(right), thresholds)
    reported = hits + len(wrong) - np.searchsorted(np.sort(wrong), thresholds)
    precision = np.append(hits / reported, 1.0)
    recall = np.append(hits / max(1, len(right) + missed), 0.0)
    stretched = np.concatenate((recall[:1], recall, [0.0]))
    return float(np.dot(precision, (stretched[:-2] - stretched[2:]) / 2))


def _label(instance_id: int) -> int:
    return instance_id if instance_id < 1000 else instance_id // 1000


def _counts(values: np.ndarray) -> dict[int, int]:
    there, numbers = np.unique(values, return_counts=True)
    return dict(zip(there.tolist(), numbers.tolist(), strict=True))


def _mean(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")
