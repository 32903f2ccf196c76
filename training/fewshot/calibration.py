"""Scores that mean something to people: one half is where what is shown is most often right and little is missed.

Label Studio shows what scores at least `TRANSFINER_SCORE_THRESHOLD`, one half by default. Rows learned from few images
are over-confident, so their scores are raised to a power that cross-validation tells. The order stays, and AP with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

#: A detection is right when it overlaps an object of its class by this much.
RIGHT_IOU = 0.5
#: Thresholds that a few images may call for.
THRESHOLDS = (0.3, 0.85)

#: Label, score and compressed RLE of each detection; label and RLE of each object.
Detections = Sequence[Sequence[Any]]
Objects = Sequence[tuple[str, dict[str, Any]]]


def score_power(images: Iterable[tuple[Detections, Objects]]) -> float:
    """The power that brings the threshold of the best F1 to one half; 1 where nothing is right."""
    scores, right, objects = list[float](), list[bool](), 0
    for detections, truth in images:
        objects += len(truth)
        taken: set[int] = set()
        for label, score, mask, *_ in sorted(detections, key=lambda entry: -entry[1]):
            best = _best(label, mask, truth, taken)
            scores.append(score)
            right.append(best is not None)
            taken |= set() if best is None else {best}
    order = np.argsort(-np.array(scores), kind="stable")
    hits = np.cumsum(np.array(right, np.int64)[order])
    if not len(hits) or not hits[-1]:
        return 1.0
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + objects)
    cut = int(f1.argmax())
    ranked = np.array(scores)[order]
    below = ranked[cut + 1] if cut + 1 < len(ranked) else ranked[cut]
    threshold = min(max((ranked[cut] + below) / 2, THRESHOLDS[0]), THRESHOLDS[1])
    return math.log(0.5) / math.log(threshold)


def _best(label: str, mask: dict[str, Any], truth: Objects, taken: set[int]) -> int | None:
    """The object of that class that the mask fits best, of those that are left."""
    places = [place for place, (name, _) in enumerate(truth) if name == label and place not in taken]
    if not places:
        return None
    overlaps = rle.iou([mask], [truth[place][1] for place in places], [0] * len(places))[0]
    best = int(overlaps.argmax())
    return places[best] if overlaps[best] >= RIGHT_IOU else None
