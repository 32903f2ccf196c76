"""Average precision as COCO defines it, for masks, boxes and boundaries: pycocotools' numbers in less time."""

from __future__ import annotations

from typing import Any

from pycocotools.coco import COCO

from training.evaluation.coco_records import category_names, detections, in_order, truths
from training.evaluation.matching import match
from training.evaluation.objects import Objects
from training.evaluation.overlaps import Pairs
from training.evaluation.pairs import Kind, Progress, compared
from training.evaluation.precision import Curves, curves, precisions, recalls

_MOST = (1, 10, 100)


def mask_ap(truth: COCO, found: list[dict[str, Any]]) -> dict[str, float]:
    """COCO's 12 numbers and ``AP/<class>`` for every class: fractions in 0..1, NaN where nothing was to be found.

    AP over IoU .50:.95, AP50, AP75, by area (APs, APm, APl); AR1, AR10, AR100, ARs, ARm, ARl.
    """
    return coco_ap(truth.dataset, found, "segm")


def coco_ap(
    dataset: dict[str, Any],
    found: list[dict[str, Any]],
    kind: Kind,
    *,
    ratio: float = 0.02,
    mask_areas: bool = False,
    processes: int = 1,
    progress: Progress = max,
) -> dict[str, float]:
    """The same from checked records.

    Args:
        dataset: COCO ground truth.
        found: COCO results.
        kind: what is compared.
        ratio: boundary width / image diagonal.
        mask_areas: see `coco_records.detections`.
        processes, progress: see `pairs.compared`; the numbers are the same.
    """
    masks = kind != "bbox"
    truth = in_order(truths(dataset, masks=masks))
    results = in_order(detections(dataset, found, masks=masks, mask_areas=mask_areas), most=_MOST[-1])
    names = category_names(dataset)
    pairs = compared(truth, results, kind, ratio, processes=processes, progress=progress)
    outcome = measured(truth, results, pairs, categories=len(names), most=_MOST)
    return precisions(outcome, names) | recalls(outcome, _MOST)


def measured(truth: Objects, found: Objects, pairs: Pairs, *, categories: int, most: tuple[int, ...]) -> Curves:
    """Precision and recall of detections, both sorted as `in_order` does, from their candidate pairs."""
    return curves(truth, found, match(truth, found, pairs), categories, most)
