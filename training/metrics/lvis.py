"""LVIS AP, with masks, boxes or boundaries; on an LVIS file cut to COCO's categories this is PointRend's AP*.

Source: the lvis package 0.5.3. Each image is annotated for some categories only: those on it, and those known to be
absent (`neg_category_ids`). Detections of others are left out; unmatched detections of categories whose objects were
not all drawn (`not_exhaustive_category_ids`) do not count. 300 detections an image over all categories.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from training.metrics.coco import (
    IouKind,
    Progress,
    category_names,
    detection_objects,
    in_coco_order,
    iou_pairs,
    truth_objects,
)
from training.metrics.matching import Objects, curves, match_detections, mean, precisions, recalls

MOST = 300
_FREQUENCIES = ("r", "c", "f")


def lvis_ap(
    dataset: dict[str, Any],
    detections: list[dict[str, Any]],
    kind: IouKind,
    *,
    ratio: float = 0.02,
    processes: int = 1,
    progress: Progress = max,
) -> dict[str, float]:
    """AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR300, ARs, ARm, ARl ``AP/<class>``; NaN where there is no truth.

    Args:
        detections: COCO results; those with boxes have the boxes' areas, as in the reference.
        ratio: boundary width / image diagonal.
    """
    masks = kind != "bbox"
    truth = in_coco_order(truth_objects(dataset, masks=masks, federated=True))
    results = detection_objects(dataset, detections, masks=masks)
    results = results[_best_of_each_image(results)]
    results = _judged(dataset, truth, results[results.area > 0])
    names = category_names(dataset)
    results = in_coco_order(results)
    pairs = iou_pairs(truth, results, kind, ratio, processes=processes, progress=progress)
    outcome = curves(truth, results, match_detections(truth, results, pairs), len(names), (MOST,))
    values = precisions(outcome, names)
    kinds = [kind.get("frequency") for kind in sorted(dataset["categories"], key=lambda category: category["id"])]
    for frequency in _FREQUENCIES:
        chosen = [index for index, kind in enumerate(kinds) if kind == frequency]
        values[f"AP{frequency}"] = mean(outcome.precision[:, :, chosen, 0])
    return values | recalls(outcome, (MOST,))


def _best_of_each_image(detections: Objects) -> np.ndarray:
    """Indices of the 300 best of each image, in the order of the file (equal scores: the earlier)."""
    order = np.lexsort((np.arange(len(detections)), -detections.score, detections.image))
    image = detections.image[order]
    rank = np.arange(len(detections)) - np.searchsorted(image, image)
    return np.sort(order[rank < MOST])


def _judged(dataset: dict[str, Any], truth: Objects, detections: Objects) -> Objects:
    """Without detections that the annotations say nothing about; those not judged fully are marked `ignore`."""
    images = sorted(dataset["images"], key=lambda image: image["id"])
    kinds = {number: index for index, number in enumerate(sorted(category["id"] for category in dataset["categories"]))}

    def keys(field: str) -> np.ndarray:
        listed = [(n, kinds[k]) for n, image in enumerate(images) for k in image[field] if k in kinds]
        return _keys(*np.array(listed, np.int64).reshape(-1, 2).T)

    of_detections = _keys(detections.image, detections.category)
    known = np.concatenate((_keys(truth.image, truth.category), keys("neg_category_ids")))
    incomplete = np.isin(of_detections, keys("not_exhaustive_category_ids"))
    marked = replace(detections, ignore=incomplete)
    return marked[np.isin(of_detections, known)]


def _keys(image: np.ndarray, category: np.ndarray) -> np.ndarray:
    return (image << 32) + category
