"""Which annotations of a COCO file can be used: the bad ones are reported and left out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from training.datasets.problems import Problems
from training.evaluation.coco_reading import is_integer, is_number
from training.evaluation.runs import well_formed

Record = dict[str, Any]
_SLACK_PX = 1.0  # COCO's own boxes leave their images by rounding


def usable(dataset: Record, file: Path, problems: Problems) -> Record:
    """The dataset without annotations that cannot be right; of several polygons the bad ones alone are left out."""
    images = {one["id"]: one for one in dataset["images"]}
    categories = {one["id"] for one in dataset["categories"]}
    kept = []
    for one in dataset.get("annotations", []):
        record = f"annotation {one.get('id')}"
        fault = _fault(one, images, categories)
        if fault is not None:
            problems.note(file, record, *fault)
            continue
        polygons = one["segmentation"]
        if isinstance(polygons, list):
            good = [polygon for polygon in polygons if not _degenerate(polygon)]
            if len(good) < len(polygons):
                left = f"{len(polygons) - len(good)} of {len(polygons)} polygons enclose nothing"
                problems.note(file, record, "degenerate polygon", left)
            if not good:
                continue
            one = one | {"segmentation": good}
        kept.append(one)
    return dataset | {"annotations": _with_whole_masks(kept, images, file, problems)}


def _fault(one: Record, images: dict[int, Record], categories: set[int]) -> tuple[str, str] | None:
    if one.get("image_id") not in images:
        return "unknown image", f"image_id {one.get('image_id')!r} is not among the images"
    if one.get("category_id") not in categories:
        return "unknown category", f"category_id {one.get('category_id')!r} is not among the categories"
    if not isinstance(one.get("segmentation"), list | dict) or not one["segmentation"]:
        return "no mask", f"segmentation is {str(one.get('segmentation'))[:40]}"
    image = images[one["image_id"]]
    box, height, width = one.get("bbox"), image.get("height"), image.get("width")
    if box is None or height is None or width is None:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return "box outside", f"bbox {str(box)[:60]} is not [x, y, width, height]"
    x, y, w, h = box
    inside = x >= -_SLACK_PX and y >= -_SLACK_PX and x + w <= width + _SLACK_PX and y + h <= height + _SLACK_PX
    if w <= 0 or h <= 0 or not inside:
        return "box outside", f"bbox {box} in an image of {width} x {height}"
    return None


def _degenerate(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(is_number, polygon)):
        return True
    x, y = np.array(polygon, float).reshape(-1, 2).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2 < 1e-6


def _with_whole_masks(records: list[Record], images: dict[int, Record], file: Path, problems: Problems) -> list[Record]:
    """Without run lengths that do not fit their image: pycocotools would write outside its memory."""
    packed = [one for one in records if isinstance(one["segmentation"], dict)]
    counts = [one["segmentation"].get("counts") for one in packed]
    pixels = [math.prod((images[one["image_id"]].get(side) or 0) for side in ("height", "width")) for one in packed]
    texts = [one.encode("utf-8", "replace") if isinstance(one, str) else b"" for one in counts]
    fine = well_formed(texts, np.array(pixels, np.int64))
    broken = set()
    for one, runs, size, good in zip(packed, counts, pixels, fine, strict=True):
        if isinstance(runs, list):
            good = all(map(is_integer, runs)) and min(runs, default=0) >= 0 and sum(runs) == size
        shape = [images[one["image_id"]].get(side) for side in ("height", "width")]
        if not good or one["segmentation"].get("size") != shape:
            broken.add(id(one))
            problems.note(file, f"annotation {one.get('id')}", "broken mask", f"the RLE does not fill {shape} pixels")
    return [one for one in records if id(one) not in broken]
