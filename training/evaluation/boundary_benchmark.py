"""Boundary AP beside faster-coco-eval in one run: processor seconds of each, and how far their numbers differ."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.evaluation.coco_ap import coco_ap
from training.evaluation.coco_format import quiet
from training.evaluation.coco_reading import read_results, read_truth
from training.evaluation.perturbed import perturbed

_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Processor seconds from parsed JSON to numbers, the best of the rounds; the largest difference of 12 numbers."""

    images: int
    detections: int
    own_cpu_s: float
    reference_cpu_s: float
    ratio: float
    largest_difference: float
    numbers: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(truth: Path, found: Path | None = None, *, copies: int = 4, rounds: int = 2) -> Comparison:
    """Evaluate the boundary AP of predictions (by default the perturbed truth, `copies` each) with both.

    Raises:
        RecordError: a file is malformed.
        ModuleNotFoundError: faster-coco-eval is not installed.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    dataset = read_truth(truth, masks=True)
    results = read_results(found, dataset, masks=True)[0] if found else perturbed(dataset, copies=copies)

    def reference(records: dict[str, Any], detections: list[dict[str, Any]]) -> list[float]:
        index = COCO(records)
        run = COCOeval_faster(index, index.loadRes(detections), "boundary")
        run.evaluate()
        run.accumulate()
        run.summarize()
        return [float(value) for value in run.stats[:12]]

    with quiet():
        theirs, reference_cpu_s = _timed(reference, dataset, results, rounds)
    ours, own_cpu_s = _timed(lambda d, f: coco_ap(d, f, "boundary"), dataset, results, rounds)
    numbers = {name: -1.0 if ours[name] != ours[name] else ours[name] for name in _NAMES}
    apart = max(abs(numbers[name] - value) for name, value in zip(_NAMES, theirs, strict=True))
    count = len(dataset["images"])
    return Comparison(count, len(results), own_cpu_s, reference_cpu_s, reference_cpu_s / own_cpu_s, apart, numbers)


def _timed(
    evaluate: Callable[[Any, Any], Any], dataset: dict[str, Any], results: list[dict[str, Any]], rounds: int
) -> tuple[Any, float]:
    best, value = float("inf"), None
    for _ in range(rounds):
        records, detections = (
            copy.deepcopy(dataset),
            copy.deepcopy(results),
        )  # the reference changes what it reads
        started_s = time.process_time()
        value = evaluate(records, detections)
        best = min(best, time.process_time() - started_s)
    return value, best
