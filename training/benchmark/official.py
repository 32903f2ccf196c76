"""Cityscapes' and BDD100K's own rules, where a row is measured on those sets in their official layouts.

Shape shorthand: N detections of an image, H x W its pixels.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from training.datasets import AnySet
from training.datasets.bdd100k import Bdd100kSet
from training.datasets.cityscapes import CityscapesSet
from training.evaluation.bdd100k_ap import Bdd100kEvaluation, merged
from training.evaluation.cityscapes_ap import LABELS, CityscapesEvaluation


class OfficialRules(Protocol):
    """Collects images and answers with columns."""

    def add(self, index: int, masks: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        """Take in the detections of the set's image ``index``: bool (N, H, W), float (N,), int (N,)."""
        ...

    def values(self) -> dict[str, float]:
        """Columns of a table as fractions."""
        ...


def official_rules(samples: AnySet) -> OfficialRules | None:
    """The rules of a set; None where COCO's are the set's own."""
    if isinstance(samples, CityscapesSet):
        return _Cityscapes(samples)
    return _Bdd100k(samples) if isinstance(samples, Bdd100kSet) else None


class _Cityscapes:
    def __init__(self, samples: CityscapesSet) -> None:
        self.samples = samples
        self.masks, self.boundaries = CityscapesEvaluation("segm"), CityscapesEvaluation("boundary")

    def add(self, index: int, masks: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        truth, labels = self.samples.instance_ids(index), list(LABELS.values())
        given: tuple[Any, ...] = (list(masks), [labels[int(one)] for one in classes], scores.tolist())
        self.masks.add(truth, *given)
        self.boundaries.add(truth, *given)

    def values(self) -> dict[str, float]:
        masks, boundaries = self.masks.numbers(), self.boundaries.numbers()
        return {
            "AP": masks["AP"],
            "AP50": masks["AP50"],
            "APB": boundaries["AP"],
            "APB50": boundaries["AP50"],
        }


class _Bdd100k:
    def __init__(self, samples: Bdd100kSet) -> None:
        self.samples, self.evaluation = samples, Bdd100kEvaluation()

    def add(self, index: int, masks: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        found = merged(masks, [int(one) + 1 for one in classes], scores.tolist())
        self.evaluation.add(self.samples.bitmask(index), found, {n: float(score) for n, score in enumerate(scores, 1)})

    def values(self) -> dict[str, float]:
        return {"AP": self.evaluation.numbers()["AP"]}
