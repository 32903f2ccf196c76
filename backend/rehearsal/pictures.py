"""The pictures of a rehearsal and their truth: a pool for the project, and a test set that nobody touches."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from backend.rehearsal.plan import Plan
from training.scenes import Scene
from training.shifted_scenes import CLASSES, generate_shifted_scene

# Far apart: the test set has no picture of the pool.
POOL, TEST = 0, 1_000_000
_NAME = re.compile(r"pool-(\d+)\.png")


def pool_scene(plan: Plan, number: int) -> Scene:
    """A picture of the pool with its truth."""
    return _scene(plan, POOL, number)


def number_of(address: str) -> int:
    """Which picture of the pool a task shows, by its address in Label Studio (which puts letters before the name).

    Raises:
        ValueError: it is none.
    """
    found = _NAME.search(address)
    if not found:
        raise ValueError(f"the task's image is {address!r}, expected .../<letters>-pool-<number>.png")
    return int(found[1])


def write_pool(plan: Plan, folder: Path) -> list[Path]:
    """The pool as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"pool-{number:04d}.png" for number in range(plan.pool)]
    for number, path in enumerate(paths):
        Image.fromarray(pool_scene(plan, number).image).save(path)
    return paths


def write_test_set(plan: Plan, folder: Path) -> Path:
    """The test set as the hold-out of a snapshot, which is what the gate's evaluator reads; its folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(plan.test):
        scene = _scene(plan, TEST, number)
        name = f"test-{number:04d}.png"
        Image.fromarray(scene.image).save(folder / "images" / name)
        images.append({"id": number + 1, "file_name": name, "width": plan.width, "height": plan.height})
        annotations += _annotations(number + 1, scene.instances, len(annotations))
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "holdout.json").write_text(json.dumps(coco))
    return folder


def _scene(plan: Plan, first: int, number: int) -> Scene:
    return generate_shifted_scene(
        plan.seed * 10_000_000 + first + number, width=plan.width, height=plan.height
    )


def _annotations(
    image_id: int, instances: Sequence[tuple[str, np.ndarray]], before: int
) -> list[dict[str, Any]]:
    made = []
    for number, (label, mask_hw) in enumerate(instances, before + 1):
        encoded = rle.encode(np.asfortranarray(mask_hw, dtype=np.uint8))
        segmentation = {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
        made.append(
            {
                "id": number, "image_id": image_id, "category_id": CLASSES.index(label) + 1, "iscrowd": 0,
                "segmentation": segmentation, "area": int(rle.area(encoded)), "bbox": rle.toBbox(encoded).tolist(),
            }
        )  # fmt: skip
    return made
