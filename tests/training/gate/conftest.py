"""Hold-outs of small drawn pictures, and models that are a way of distorting the truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from training.datasets import Sample
from training.evaluation.coco_format import encode
from training.gate.holdout import Detection

SIZE_PX = 64
CLASSES = ("cat", "dog")
# (mask, its random numbers) -> the mask that a model finds, or None if it finds nothing.
Distort = Callable[[np.ndarray, np.random.Generator], np.ndarray | None]


@dataclass
class World:
    """Snapshots below a folder, and models whose detections `detect` invents.

    Attributes:
        calls: (model, how many pictures) of each call of `detect`.
    """

    folder: Path
    models: dict[Path, tuple[Distort, int, Sequence[str]]] = field(default_factory=dict)
    calls: list[tuple[str, int]] = field(default_factory=list)

    def shifted_by(self, most_px: int) -> Distort:
        """Finds everything, each mask off by up to so many pixels at random."""
        return lambda mask, rng: np.roll(mask, rng.integers(-most_px, most_px + 1, 2), axis=(0, 1))

    def blind(self) -> Distort:
        """Finds nothing."""
        return lambda mask, rng: None

    def snapshot(self, name: str, images: int, *, seed: int = 0, classes: Sequence[str] = CLASSES) -> Path:
        """A snapshot whose hold-out has so many pictures with two discs each; equal seeds share pictures."""
        directory = self.folder / name
        (directory / "images").mkdir(parents=True)
        coco: dict = {"images": [], "annotations": [], "categories": []}
        coco["categories"] = [{"id": index + 1, "name": label} for index, label in enumerate(classes)]
        for number in range(images):
            rng = np.random.default_rng((seed, number))
            file = f"{seed}-{number}.png"
            Image.fromarray(rng.integers(0, 255, (SIZE_PX, SIZE_PX, 3), np.uint8)).save(directory / "images" / file)
            coco["images"].append({"id": number + 1, "file_name": file, "height": SIZE_PX, "width": SIZE_PX})
            for place in range(2):
                coco["annotations"].append(
                    _annotation(_disc(rng, place), number + 1, (number + place) % len(classes) + 1, coco)
                )
        (directory / "holdout.json").write_text(json.dumps(coco))
        return directory

    def model(self, name: str, distort: Distort, *, seed: int = 1, classes: Sequence[str] = CLASSES) -> Path:
        """A checkpoint directory without weights: nobody but `detect` looks into it."""
        directory = self.folder / "models" / name
        directory.mkdir(parents=True)
        metadata = {"name": name, "version": name, "classes": list(classes), "digest": name}
        (directory / "metadata.json").write_text(json.dumps(metadata))
        self.models[directory] = (distort, seed, classes)
        return directory

    def detect(self, directory: Path, samples: Sequence[Sample]) -> list[list[Detection]]:
        """What the model of that folder finds: its distortion of the truth, with random scores."""
        distort, seed, classes = self.models[directory]
        self.calls.append((directory.name, len(samples)))
        results = []
        for index in range(len(samples)):
            sample = samples[index]
            rng = np.random.default_rng((seed, int(sample.image[:4].sum())))
            masks_by_label = [
                (label, distort(mask, rng)) for label, mask in zip(sample.classes, sample.masks, strict=True)
            ]
            known_masks = [
                (CLASSES[label], mask)
                for label, mask in masks_by_label
                if mask is not None and CLASSES[label] in classes
            ]
            results.append([Detection(label, float(rng.uniform(0.5, 1)), encode(mask)) for label, mask in known_masks])
        return results


def _disc(rng: np.random.Generator, place: int) -> np.ndarray:
    """A disc in the upper or lower half."""
    radius = rng.integers(9, 15)
    x, y = rng.integers(16, 48), 16 + 32 * place
    rows, columns = np.ogrid[:SIZE_PX, :SIZE_PX]
    disc: np.ndarray = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    return disc


def _annotation(mask: np.ndarray, image_id: int, category_id: int, coco: dict) -> dict:
    mask_rle = encode(mask)
    return {
        "id": len(coco["annotations"]) + 1,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "area": float(rle.area(mask_rle)),
        "bbox": rle.toBbox(mask_rle).tolist(),
        "segmentation": {"size": mask_rle["size"], "counts": mask_rle["counts"].decode()},
    }


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty world."""
    return World(tmp_path)
