"""Candidate pairs of truths and detections with the IoU of a metric: the costly part, shared among processes.

Pairs never cross images, so chunks of images can be compared anywhere; joined in order they are the pairs of one pass,
number for number.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np

from training.evaluation.boundary import with_boundaries
from training.evaluation.in_processes import in_order
from training.evaluation.objects import Objects
from training.evaluation.overlaps import Pairs, overlapping

Kind = Literal["segm", "bbox", "boundary"]
Progress = Callable[[int, int], object]  # (images done, images in all)
# With fewer detections, starting processes takes longer than comparing.
WORTH_PROCESSES = 20_000
_CHUNKS = 16


def compared(
    truth: Objects, found: Objects, kind: Kind, ratio: float, *, processes: int = 1, progress: Progress = max
) -> Pairs:
    """Pairs of equal image and category with IoU >= 0.5, as `overlapping` and `with_boundaries` have them.

    Args:
        truth, found: sorted as `coco_records.in_order` does.
        processes: to share the work among, where there is enough of it.
        progress: told (images done, images in all) after each chunk.
    """
    images = int(max(truth.image.max(initial=-1), found.image.max(initial=-1))) + 1
    worth = len(found) >= WORTH_PROCESSES
    edges = np.linspace(0, images, (_CHUNKS if worth else 1) + 1).astype(int)
    places = [
        (np.flatnonzero(_within(truth, low, high)), np.flatnonzero(_within(found, low, high)))
        for low, high in pairwise(edges)
    ]
    work = [(truth[ours], found[theirs], kind, ratio) for ours, theirs in places]
    parts = []
    for number, pairs in enumerate(in_order(_compare, work, processes if worth else 1)):
        ours, theirs = places[number]
        parts.append((theirs[pairs.found], ours[pairs.truth], pairs.iou))
        progress(int(edges[number + 1]), images)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.lexsort((columns[1], columns[0]))
    return Pairs(*(column[order] for column in columns))


def _compare(truth: Objects, found: Objects, kind: Kind, ratio: float) -> Pairs:
    pairs = overlapping(truth, found, boxes=kind == "bbox")
    return with_boundaries(pairs, truth, found, ratio) if kind == "boundary" else pairs


def _within(objects: Objects, low: int, high: int) -> np.ndarray:
    inside: np.ndarray = (objects.image >= low) & (objects.image < high)
    return inside
