"""The pictures of a rehearsal and their truth: a pool for the project, and a test set that nobody touches."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from backend.devtools.rehearsal.plan import Plan
from training.datasets import AnySet, open_set
from training.synthetic.scenes import Scene
from training.synthetic.shifted import SHIFTED_CLASSES, generate_shifted_scene

# Far apart: the test set has no picture of the pool.
POOL, TEST = 0, 1_000_000
_NAME = re.compile(r"pool-(\d+)\.png")


class Material(Protocol):
    """Pictures by number, with what is on them."""

    @property
    def classes(self) -> tuple[str, ...]:
        """What the project labels."""

    def pool(self, number: int) -> Scene:
        """A picture of the project with its truth."""

    def test(self, number: int) -> Scene:
        """A picture that nobody touches."""


class ShiftedScenes:
    """Drawn pictures of a domain that the shipped model never saw."""

    classes = SHIFTED_CLASSES

    def __init__(self, plan: Plan) -> None:
        self._size_px = {"width": plan.width, "height": plan.height}
        self._first = plan.seed * 10_000_000

    def pool(self, number: int) -> Scene:
        return generate_shifted_scene(self._first + POOL + number, **self._size_px)

    def test(self, number: int) -> Scene:
        return generate_shifted_scene(self._first + TEST + number, **self._size_px)


class Photographs:
    """Annotated photographs of two sets, made small enough for a CPU; which of them come first is the seed's.

    Raises:
        ValueError: there are fewer photographs than the plan takes, or the sets have different classes.
    """

    def __init__(self, plan: Plan, train: str, test: str) -> None:
        self._sets, self._longest_px = (open_set(train), open_set(test)), plan.width
        self.classes = self._sets[0].class_names
        if self.classes != self._sets[1].class_names:
            raise ValueError(f"{train} has the classes {self.classes}, {test} has {self._sets[1].class_names}")
        for name, photographs, wanted in zip((train, test), self._sets, (plan.pool, plan.test), strict=True):
            if len(photographs) < wanted:
                raise ValueError(f"{name} has {len(photographs)} photographs, the plan takes {wanted}")
        self._order = np.random.default_rng(plan.seed).permutation(len(self._sets[0]))

    def pool(self, number: int) -> Scene:
        return self._read(self._sets[0], int(self._order[number]))

    def test(self, number: int) -> Scene:
        return self._read(self._sets[1], number)

    def _read(self, photographs: AnySet, index: int) -> Scene:
        sample = photographs[index]
        height, width = sample.image.shape[:2]
        share = min(1.0, self._longest_px / max(height, width))
        size = (max(1, round(width * share)), max(1, round(height * share)))
        masks = [np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in sample.masks]
        image = np.asarray(Image.fromarray(sample.image).resize(size, Image.Resampling.LANCZOS))
        labels = [self.classes[number] for number in sample.classes]
        kept = zip(labels, masks, sample.crowd, strict=True)
        return Scene(image, tuple((label, mask) for label, mask, crowd in kept if mask.any() and not crowd))


def material_of(plan: Plan) -> Material:
    """The plan's pictures: photographs where it names some, else drawn ones."""
    return Photographs(plan, *plan.photos) if plan.photos else ShiftedScenes(plan)


def number_of(address: str) -> int:
    """Which picture of the pool a task shows, by its address in Label Studio (which puts letters before the name).

    Raises:
        ValueError: it is none.
    """
    match = _NAME.search(address)
    if not match:
        raise ValueError(f"the task's image is {address!r}, expected .../<letters>-pool-<number>.png")
    return int(match[1])


def write_pool(material: Material, count: int, folder: Path) -> list[Path]:
    """The first pictures of the pool as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"pool-{number:04d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(material.pool(number).image).save(path)
    return paths


def write_test_set(material: Material, count: int, folder: Path) -> Path:
    """The test set as the hold-out of a snapshot, which is what the gate's evaluator reads; its folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        scene = material.test(number)
        name = f"test-{number:04d}.png"
        Image.fromarray(scene.image).save(folder / "images" / name)
        height, width = scene.image.shape[:2]
        images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
        annotations += _annotations(material.classes, number + 1, scene.instances, len(annotations))
    categories = [{"id": number, "name": name} for number, name in enumerate(material.classes, 1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "holdout.json").write_text(json.dumps(coco))
    return folder


def _annotations(
    classes: Sequence[str], image_id: int, instances: Sequence[tuple[str, np.ndarray]], before: int
) -> list[dict[str, Any]]:
    made = []
    for number, (label, mask_hw) in enumerate(instances, before + 1):
        encoded = rle.encode(np.asfortranarray(mask_hw, dtype=np.uint8))
        segmentation = {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
        made.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": classes.index(label) + 1,
                "iscrowd": 0,
                "segmentation": segmentation,
                "area": int(rle.area(encoded)),
                "bbox": rle.toBbox(encoded).tolist(),
            }
        )
    return made
