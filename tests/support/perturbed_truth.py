"""Made-up detections: the ground truth moved, grown, shrunk, cut, doubled and mislabelled; the same for the same seed.

They stand in for a model's output where metrics are compared with their references or timed: every IoU from 0 to 1
occurs, boundaries are good and bad, scores tie now and then, and some detections are nobody's.

`python -m tests.support.perturbed_truth TRUTH.json` measures their boundary AP beside faster-coco-eval in one run:
processor seconds of each, and how far their numbers differ.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from tests.support.coco_reference import quiet
from training.evaluation.coco_format import checked_truth
from training.metrics.coco import coco_ap, compressed
from training.metrics.coco_schema import read_json

_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def compare_speed(truth: Path, *, copies: int = 4, rounds: int = 2) -> dict[str, float]:
    """Evaluate the boundary AP of the perturbed truth, `copies` detections an object, with both tools.

    Returns:
        Images, detections; processor seconds from parsed JSON to numbers, the best of the rounds, of both; the largest
        difference of COCO's 12 numbers.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    dataset = checked_truth(read_json(truth), truth, masks=True).dataset
    results = perturb_truth(dataset, copies=copies)

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
    numbers = [-1.0 if math.isnan(ours[name]) else ours[name] for name in _NAMES]
    return {
        "images": len(dataset["images"]),
        "detections": len(results),
        "own_cpu_s": own_cpu_s,
        "reference_cpu_s": reference_cpu_s,
        "largest_difference": max(abs(own - other) for own, other in zip(numbers, theirs, strict=True)),
    }


def _timed(
    evaluate: Callable[[Any, Any], Any], dataset: dict[str, Any], results: list[dict[str, Any]], rounds: int
) -> tuple[Any, float]:
    best, value = float("inf"), None
    for _ in range(rounds):
        records, detections = (copy.deepcopy(dataset), copy.deepcopy(results))  # the reference changes what it reads
        started_s = time.process_time()
        value = evaluate(records, detections)
        best = min(best, time.process_time() - started_s)
    return value, best


def perturb_truth(
    dataset: dict[str, Any], *, copies: int = 4, seed: int = 0, boxes: bool = False
) -> list[dict[str, Any]]:
    """COCO results for a COCO ground truth: `copies` detections for every annotation, with compressed RLE.

    `boxes` adds the field `bbox`, which changes the areas that COCO's tool sees.
    """
    rng = np.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    kinds = [category["id"] for category in dataset["categories"]]
    results = []
    for annotation in dataset["annotations"]:
        height, width = sizes[annotation["image_id"]]
        mask = rle.decode(compressed(annotation["segmentation"], height, width)).astype(bool)
        perturbed = perturb_masks([mask], [annotation["category_id"]], kinds, rng, copies)
        for changed, label, score in zip(*perturbed, strict=True):
            results.append(_record(annotation["image_id"], label, score, changed, boxes))
    return results


def perturb_masks(
    masks: Sequence[np.ndarray], labels: Sequence[int], kinds: Sequence[int], rng: np.random.Generator, copies: int = 2
) -> tuple[list[np.ndarray], list[int], list[float]]:
    """(masks, labels, scores): `copies` detections for every object of an image; `kinds` are the labels to confuse."""
    perturbed: list[tuple[np.ndarray, int, float]] = []
    for mask, label in zip(masks, labels, strict=True):
        for _ in range(copies):
            changed, closeness = _changed(mask, rng)
            named = int(label) if rng.random() < 0.9 else int(kinds[int(rng.integers(len(kinds)))])
            perturbed.append((changed, named, round(float(np.clip(closeness + rng.normal(0, 0.2), 0.01, 1)), 2)))
    return (
        [mask for mask, _, _ in perturbed],
        [category for _, category, _ in perturbed],
        [score for _, _, score in perturbed],
    )


def _record(image_id: int, label: int, score: float, mask: np.ndarray, boxes: bool) -> dict[str, Any]:
    packed = rle.encode(np.asfortranarray(mask, np.uint8))
    record = {
        "image_id": image_id,
        "category_id": label,
        "score": score,
        "segmentation": {"size": list(packed["size"]), "counts": packed["counts"].decode("ascii")},
    }
    return record | ({"bbox": rle.toBbox(packed).tolist()} if boxes else {})


def _changed(mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """(a mask somewhere between perfect and lost, about how close it stayed)."""
    strength = float(rng.choice([0.02, 0.08, 0.25, 1.0]))
    shift_px = rng.normal(0, strength * max(1.0, np.sqrt(mask.sum())) / 3, 2).astype(int)
    changed = np.roll(mask, shift_px.tolist(), (0, 1))
    for _ in range(int(rng.integers(0, 3))):
        changed = _grown(changed) if rng.random() < 0.5 else ~_grown(~changed)
    if rng.random() < 0.2:
        columns = np.flatnonzero(changed.any(0))
        if len(columns) > 3:
            changed[:, columns[-len(columns) // 4] :] = False
    return changed, 1 - strength


def _grown(mask: np.ndarray) -> np.ndarray:
    """One pixel more on every side."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


if __name__ == "__main__":
    print(json.dumps(compare_speed(Path(sys.argv[1]))))
