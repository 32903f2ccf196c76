"""Masks from files: an image (every pixel that is not black belongs to the mask) or a COCO annotation file."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backend.errors import ServiceError


@dataclass(frozen=True, slots=True)
class NamedMask:
    """A mask (bool, H x W), what to call it, and the image it is of: masks of one image may touch."""

    name: str
    image: str
    mask_hw: np.ndarray


def read_masks(path: Path) -> list[NamedMask]:
    """All masks of a file.

    Raises:
        ServiceError: the file cannot be read as either kind.
    """
    if path.suffix.lower() == ".json":
        return list(_coco_masks(path))
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB") if picture.mode in ("P", "RGBA", "CMYK") else picture)
    except (OSError, ValueError) as error:
        raise ServiceError(
            f"{path} is not an image: {error}", "Pass a PNG mask or a COCO .json file."
        ) from error
    return [
        NamedMask(path.name, path.name, np.asarray(pixels.any(axis=-1) if pixels.ndim == 3 else pixels > 0))
    ]


def _coco_masks(path: Path) -> Iterator[NamedMask]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        sizes = {image["id"]: (image["height"], image["width"]) for image in records["images"]}
        classes = {category["id"]: category["name"] for category in records.get("categories", [])}
        by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in records["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        for image, annotations in by_image.items():
            for annotation in annotations:
                label = classes.get(annotation.get("category_id"), "")
                name = f"{annotation.get('id', '?')} {label}".strip()
                yield NamedMask(name, str(image), _decoded(annotation["segmentation"], *sizes[image]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "Expected a COCO instances file: images with id, height, width; annotations with segmentation."
        raise ServiceError(f"{path} is not a COCO file: {type(error).__name__} {error}.", hint) from error


def _decoded(segmentation: Any, height: int, width: int) -> np.ndarray:
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        runs = coco_mask.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    return coco_mask.decode(runs).astype(np.bool_)
