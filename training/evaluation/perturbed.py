"""Made-up detections: the ground truth moved, grown, shrunk, cut, doubled and mislabelled; the same for the same seed.

They stand in for a model's output where metrics are compared with their references or timed: every IoU from 0 to 1
occurs, boundaries are good and bad, scores tie now and then, and some detections are nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from training.evaluation.coco_records import compressed


def perturbed(dataset: dict[str, Any], *, copies: int = 4, seed: int = 0, boxes: bool = False) -> list[dict[str, Any]]:
    """COCO results for a COCO ground truth: `copies` detections for every annotation, with compressed RLE.

    `boxes` adds the field `bbox`, which changes the areas that COCO's tool sees.
    """
    rng = np.random.default_rng(seed)
    sizes = {one["id"]: (one["height"], one["width"]) for one in dataset["images"]}
    kinds = [one["id"] for one in dataset["categories"]]
    results = []
    for annotation in dataset["annotations"]:
        height, width = sizes[annotation["image_id"]]
        mask = rle.decode(compressed(annotation["segmentation"], height, width)).astype(bool)
        found = perturbed_masks([mask], [annotation["category_id"]], kinds, rng, copies)
        for changed, label, score in zip(*found, strict=True):
            results.append(_record(annotation["image_id"], label, score, changed, boxes))
    return results


def perturbed_masks(
    masks: Sequence[np.ndarray],
    labels: Sequence[int],
    kinds: Sequence[int],
    rng: np.random.Generator,
    copies: int = 2,
) -> tuple[list[np.ndarray], list[int], list[float]]:
    """(masks, labels, scores): `copies` detections for every object of an image; `kinds` are the labels to confuse."""
    found: list[tuple[np.ndarray, int, float]] = []
    for mask, label in zip(masks, labels, strict=True):
        for _ in range(copies):
            changed, closeness = _changed(mask, rng)
            named = int(label) if rng.random() < 0.9 else int(kinds[int(rng.integers(len(kinds)))])
            found.append((changed, named, round(float(np.clip(closeness + rng.normal(0, 0.2), 0.01, 1)), 2)))
    return [one for one, _, _ in found], [one for _, one, _ in found], [one for _, _, one in found]


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
