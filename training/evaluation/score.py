"""Evaluate predictions on disk against ground truth on disk, for every metric and layout. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.evaluation.coco_format import checked_truth
from training.metrics.bdd100k import bdd100k_ap
from training.metrics.cityscapes import RATIO as CITYSCAPES_RATIO
from training.metrics.cityscapes import cityscapes_ap
from training.metrics.coco import IouKind, Progress, coco_ap, lvis_ap
from training.metrics.coco_schema import checked_results, read_json

METRICS: dict[str, tuple[bool, IouKind]] = {  # name -> (LVIS's rules, what is compared)
    "segm": (False, "segm"),
    "bbox": (False, "bbox"),
    "boundary": (False, "boundary"),
    "lvis": (True, "segm"),
    "lvis-bbox": (True, "bbox"),
    "lvis-boundary": (True, "boundary"),
}
LAYOUTS = ("coco", "cityscapes", "bdd100k")
COCO_RATIO = 0.02


@dataclass(frozen=True, slots=True)
class Score:
    """Numbers of one evaluation.

    Attributes:
        numbers: AP, AP50, ... and ``AP/<category>``: fractions, NaN where there is no truth.
        notes: what a reader should know about the numbers.
    """

    layout: str
    metric: str
    numbers: dict[str, float]
    images: int
    detections: int
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For JSON: -1 where there is no ground truth, null for what the layout's protocol does not define."""
        numbers: dict[str, Any] = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"))
        numbers |= {name: _known(value) for name, value in self.numbers.items() if "/" not in name}
        categories = {n[3:]: _known(value) for n, value in self.numbers.items() if n.startswith("AP/")}
        return {
            "format": self.layout,
            "metric": self.metric,
            **numbers,
            "per_category": categories,
            "images": self.images,
            "detections": self.detections,
            "notes": list(self.notes),
        }


def _known(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def score(
    truth: Path,
    results: Path,
    metric: str = "segm",
    layout: str = "coco",
    *,
    ratio: float | None = None,
    mask_areas: bool = False,
    unknown_categories: bool = False,
    processes: int = 1,
    progress: Progress = max,
) -> Score:
    """Evaluate predictions.

    Args:
        truth, results: files for COCO and LVIS, folders for Cityscapes and BDD100K.
        ratio: boundary width / image diagonal; by default 0.02, for Cityscapes 0.005.
        unknown_categories: leave out results of categories that the ground truth lacks instead of refusing them.
        processes: to share the work among; the numbers are the same.
        progress: called with (images done, images in all).

    Raises:
        RecordError: a file is malformed; the message names file, index and field.
        ValueError: unknown metric or layout, or a metric that the layout does not define.
    """
    if metric not in METRICS or layout not in LAYOUTS:
        raise ValueError(f"unknown metric {metric!r} or format {layout!r}; choose {', '.join(METRICS)}; {LAYOUTS}")
    if layout == "coco":
        options = {"ratio": ratio or COCO_RATIO, "processes": processes, "progress": progress}
        return _score_coco(truth, results, metric, mask_areas, unknown_categories, options)
    federated, kind = METRICS[metric]
    if federated:
        raise ValueError(f"metric {metric!r} is defined for LVIS files, not for --format {layout}")
    if layout == "cityscapes":
        outcome = cityscapes_ap(
            truth, results, kind, ratio=ratio or CITYSCAPES_RATIO, processes=processes, progress=progress
        )
    else:
        outcome = bdd100k_ap(truth, results, kind, processes=processes, progress=progress)
    return Score(layout, metric, *outcome)


def _score_coco(
    truth: Path, results_file: Path, metric: str, mask_areas: bool, unknown_categories: bool, options: dict[str, Any]
) -> Score:
    federated, kind = METRICS[metric]
    masks = kind != "bbox"
    ground_truth = checked_truth(read_json(truth), truth, masks=masks, federated=federated)
    dataset = ground_truth.dataset
    results, left_out = checked_results(
        read_json(results_file),
        str(results_file),
        dataset,
        masks=masks,
        unknown_categories=unknown_categories,
        id_of=ground_truth.id_of,
        left_out=ground_truth.left_out,
    )
    if federated:
        numbers = lvis_ap(dataset, results, kind, **options)
    else:
        numbers = coco_ap(dataset, results, kind, mask_areas=mask_areas, **options)
    reason = "unknown categories" + (" and of images that cannot be judged" if ground_truth.left_out else "")
    notes = [f"{left_out} results of {reason} were left out"] if left_out else []
    notes += ground_truth.notes()
    if masks and not mask_areas and results and results[0].get("bbox"):
        notes.append(
            "the predictions carry boxes: as in the reference tool, APs, APm and APl sort them by the area of the box"
            + ("" if federated else "; --mask-areas takes the masks', as detectron2 does")
        )
    return Score("coco", metric, numbers, len(dataset["images"]), len(results), tuple(notes))
