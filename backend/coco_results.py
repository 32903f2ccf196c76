"""Instances as COCO results: what COCO's evaluation reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from model.instance import Instance


def image_id_of(file: Path, number: int) -> int:
    """COCO names its files by image id (000000008844.jpg is 8844); other files count from 1."""
    return int(file.stem) if file.stem.isdecimal() else number + 1


def coco_results(
    file: Path, image_id: int, instances: Sequence[Instance], category_ids: dict[str, int]
) -> list[dict[str, Any]]:
    """One record an instance: bbox in x, y, width, height; the mask as compressed RLE; the file and class named."""
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[instance.label],
            "bbox": _bbox_xywh(instance.box_xyxy),
            "score": instance.score,
            "segmentation": encode_mask(instance.mask_hw),
            "file_name": file.name,
            "category": instance.label,
            "uncertainty": instance.uncertainty,
        }
        for instance in instances
    ]


def category_ids_of(labels: Sequence[str]) -> dict[str, int]:
    """COCO's own ids (with their gaps) for the 80 COCO classes, else the model's class numbers from 1."""
    # Here, because detectron2 is slow to import and only this needs it.
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    coco = {category["name"]: category["id"] for category in COCO_CATEGORIES if category["isthing"]}
    if set(labels) == set(coco):
        return coco
    return {label: number for number, label in enumerate(labels, start=1)}


def encode_mask(mask_hw: np.ndarray) -> dict[str, Any]:
    """Compressed run-length encoding, column by column, as JSON holds it."""
    encoded = coco_mask.encode(np.asfortranarray(mask_hw.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def _bbox_xywh(box_xyxy: tuple[float, float, float, float]) -> list[float]:
    left, top, right, bottom = box_xyxy
    return [round(value, 3) for value in (left, top, right - left, bottom - top)]
