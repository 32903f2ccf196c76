"""Generated scenes as files: PNG images and one COCO annotation file. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from training.synthetic.scenes import CLASSES, generate_scene, scene_seed


@dataclass(frozen=True, slots=True)
class WrittenScenes:
    """What lies on the disk: image files, their annotation file, and how many objects it lists."""

    images: tuple[Path, ...]
    annotations: Path
    instances: int


def write_scenes(
    folder: Path, split: str, indices: Sequence[int], *, width: int = 384, height: int = 288
) -> WrittenScenes:
    """Write scenes into ``folder/images`` and ``folder/instances.json``."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[Path] = []
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in indices:
        scene = generate_scene(scene_seed(split, index), width=width, height=height)
        path = folder / "images" / f"{split}-{index:06d}.png"
        Image.fromarray(scene.image).save(path)
        images.append(path)
        records.append({"id": index, "file_name": path.name, "height": height, "width": width})
        annotations += [_annotation(index, label, mask) for label, mask in scene.instances]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": records, "annotations": annotations, "categories": categories}))
    return WrittenScenes(tuple(images), path, len(annotations))


def _annotation(image_id: int, label: str, mask_hw: np.ndarray) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(mask_hw, dtype=np.uint8))
    segmentation = {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
    measures = {"area": int(rle.area(encoded)), "bbox": rle.toBbox(encoded).tolist(), "iscrowd": 0}
    return {"image_id": image_id, "category_id": CLASSES.index(label) + 1, "segmentation": segmentation} | measures
