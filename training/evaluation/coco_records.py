"""COCO records (already checked) as arrays: truths and detections in the order in which COCO evaluates them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle

from training.evaluation.objects import Objects, rank, tight_boxes

Record = dict[str, Any]


def compressed(segmentation: Any, height: int, width: int) -> Record:
    """Compressed RLE (counts as bytes) of polygons, run lengths or an RLE of an H x W image."""
    if isinstance(segmentation, list):
        merged: Record = rle.merge(rle.frPyObjects(segmentation, height, width))
        return merged
    counts = segmentation["counts"]
    if isinstance(counts, list):
        packed: Record = rle.frPyObjects(segmentation, height, width)
        return packed
    return {"size": segmentation["size"], "counts": counts.encode() if isinstance(counts, str) else counts}


def truths(dataset: Record, *, masks: bool, federated: bool = False) -> Objects:
    """The annotations of a COCO (`federated`: LVIS) dataset; images and categories are numbered by rising id.

    Args:
        dataset: with images, annotations and categories.
        masks: read segmentations; else boxes.
        federated: LVIS's reading: no crowds, the field `ignore` counts, annotations of area 0 are not there.
    """
    records = [one for one in dataset["annotations"] if not federated or one["area"] > 0]
    sizes = {one["id"]: (one.get("height", 0), one.get("width", 0)) for one in dataset["images"]}
    crowd = _flags(records, "iscrowd") & (not federated)
    return Objects(
        **_places(dataset, records),
        area=np.array([one["area"] for one in records], float),
        score=np.zeros(len(records)),
        crowd=crowd,
        ignore=_flags(records, "ignore") & federated,
        masks=[compressed(one["segmentation"], *sizes[one["image_id"]]) for one in records] if masks else (),
        boxes=np.zeros((0, 4)) if masks else _boxes(records),
    )


def detections(dataset: Record, results: Sequence[Record], *, masks: bool, mask_areas: bool = False) -> Objects:
    """COCO results as arrays.

    As in COCO's own tool, results that carry a box have its area, also when masks are compared: that changes APs, APm
    and APl. `mask_areas` takes the masks' areas instead, as detectron2 does by leaving the boxes out.
    """
    sizes = {one["id"]: (one.get("height", 0), one.get("width", 0)) for one in dataset["images"]}
    boxed = bool(results) and bool(results[0].get("bbox")) and not (masks and mask_areas)
    packed = [] if boxed and not masks else [_mask(one, sizes[one["image_id"]]) for one in results]
    boxes = _boxes(results) if boxed else tight_boxes(packed)
    area = boxes[:, 2] * boxes[:, 3] if boxed else _areas(packed)
    return Objects(
        **_places(dataset, results),
        area=area,
        score=np.array([one["score"] for one in results], float),
        crowd=np.zeros(len(results), bool),
        ignore=np.zeros(len(results), bool),
        masks=packed if masks else (),
        boxes=np.zeros((0, 4)) if masks else boxes,
    )


def _mask(record: Record, size: tuple[int, int]) -> Record:
    """Of a result without a segmentation, its box; COCO's tool does the same."""
    if "segmentation" in record:
        return compressed(record["segmentation"], *size)
    x, y, width, height = record["bbox"]
    corners = [x, y, x, y + height, x + width, y + height, x + width, y]
    return compressed([corners], *size)


def _areas(masks: list[Record]) -> np.ndarray:
    """In parts: pycocotools' `area` counts its arguments in 8 bits."""
    parts = [rle.area(masks[start : start + 128]) for start in range(0, len(masks), 128)]
    return np.concatenate(parts).astype(float) if parts else np.zeros(0)


def _boxes(records: Sequence[Record]) -> np.ndarray:
    return np.array([one["bbox"] for one in records], float).reshape(-1, 4)


def _flags(records: Sequence[Record], name: str) -> np.ndarray:
    return np.array([bool(one.get(name, 0)) for one in records], bool)


def _places(dataset: Record, records: Sequence[Record]) -> dict[str, np.ndarray]:
    images = {number: index for index, number in enumerate(sorted(one["id"] for one in dataset["images"]))}
    kinds = {number: index for index, number in enumerate(sorted(one["id"] for one in dataset["categories"]))}
    return {
        "image": np.array([images[one["image_id"]] for one in records], np.int64),
        "category": np.array([kinds[one["category_id"]] for one in records], np.int64),
    }


def category_names(dataset: Record) -> list[str]:
    """Names by rising category id; where several share a name, with their ids."""
    ordered = sorted(dataset["categories"], key=lambda one: one["id"])
    uses = Counter(one["name"] for one in ordered)
    return [one["name"] if uses[one["name"]] == 1 else f"{one['name']} ({one['id']})" for one in ordered]


def in_order(found: Objects, *, most: int | None = None) -> Objects:
    """Sorted by category, image and falling score (stable), at most `most` of each category on each image."""
    ordered = found[np.lexsort((-found.score, found.image, found.category))]
    if most is None:
        return ordered
    return ordered[rank(ordered) < most]
