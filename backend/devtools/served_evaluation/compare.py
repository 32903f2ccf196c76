"""The gap between what an API returns and the raw masks of the same model.

Three rows: all raw detections, as `transfiner evaluate` measures them; of those only the ones with a score that was
asked for; and what was served. The last two show the same detections, so their difference is what outlines, label
configuration and transport cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pycocotools.coco import COCO

from training.datasets import Sample
from training.evaluation.coco_format import coco_results
from training.metrics.coco import boundary_ap, mask_ap

Json = dict[str, Any]
Metrics = dict[str, dict[str, float]]


class RawDetections:
    """Collects what the model itself found on each image (an `observe` of `evaluate_checkpoint`)."""

    def __init__(self) -> None:
        self.results: list[Json] = []

    def __call__(self, sample: Sample, instances: Any) -> None:
        masks = instances.pred_masks.numpy().astype(bool)
        self.results += coco_results(sample.image_id, masks, instances.scores.numpy(), instances.pred_classes.numpy())


def measure_metrics(truth: COCO, results: Sequence[Json], ratio: float) -> Metrics:
    """Mask AP and boundary AP of COCO results, fractions."""
    return {"mask": mask_ap(truth, list(results)), "boundary": boundary_ap(truth, list(results), ratio=ratio)}


def detections_above(results: Sequence[Json], threshold: float) -> list[Json]:
    """Those whose score reaches the threshold, as the API chooses them."""
    return [result for result in results if result["score"] >= threshold]


def metric_differences(served: Metrics, raw: Metrics) -> Metrics:
    """Served minus raw."""
    return {
        kind: {name: value - raw[kind][name] for name, value in numbers.items()} for kind, numbers in served.items()
    }


def notes(served: Sequence[Json], raw: Sequence[Json], threshold: float) -> list[str]:
    """Sentences about the thresholds that a reader must know."""
    lowest = min((result["score"] for result in served), default=threshold)
    between = [result for result in detections_above(raw, threshold) if round(result["score"], 6) < lowest - 1e-6]
    if lowest > threshold and len(between) > 0.02 * len(raw):
        return [
            f"{len(between)} raw detections score from {threshold:g} up to {lowest:.3f}, the lowest score served: is "
            "the API's TRANSFINER_SCORE_FLOOR higher than --threshold?"
        ]
    return []


def comparison_text(outcome: Json) -> str:
    """The outcome for people."""
    lines = [
        f"{outcome['images']} images of {outcome['set']} through {outcome['url']} "
        f"({', '.join(outcome['versions']) or 'nothing answered'}), {outcome['seconds']:.0f} s, "
        f"{outcome['objects']} objects in {outcome['regions']} regions, {outcome['deferred']} answers deferred",
        f"{'':22}{'mask AP':>10}{'AP50':>8}{'AP75':>8}{'boundary AP':>14}{'AP50':>8}{'AP75':>8}",
    ]
    titles = {
        "raw": "raw, all scores",
        "raw_shown": f"raw, from {outcome['threshold']:g} on",
        "served": "served",
        "difference": "served - raw",
    }
    for key, title in titles.items():
        if key in outcome:
            lines.append(f"{title:22}" + _cells(outcome[key], "+" if key == "difference" else ""))
    for failure in outcome["failed"]:
        lines.append(f"{failure['count']} failed: {failure['reason']}")
    lines += [f"{count} regions left out: {reason}" for reason, count in outcome["skipped"].items()]
    return "\n".join([*lines, *(f"Note: {note}" for note in outcome["notes"])])


def _cells(metrics: Metrics, sign: str) -> str:
    widths = {"mask": (10, 8, 8), "boundary": (14, 8, 8)}
    digits = "+.2f" if sign else ".1f"
    return "".join(
        f"{100 * metrics[kind][name]:{digits}}".rjust(width)
        for kind, columns in widths.items()
        for name, width in zip(("AP", "AP50", "AP75"), columns, strict=True)
    )
