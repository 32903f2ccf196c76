"""Generated scenes as a set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.files import replacing
from training.datasets.sample import Problems, Sample
from training.synthetic.scenes import CLASSES, VERSION, generate_scene, scene_seed

ENDLESS = 1_000_000  # scenes of a split when no count is given: more than any run sees


class SceneSet(Sequence[Sample]):
    """Generated scenes; each is drawn when it is read, and stored where a `cache` folder is given."""

    def __init__(
        self, split: str, count: int = ENDLESS, *, width: int = 384, height: int = 288, cache: Path | None = None
    ) -> None:
        scene_seed(split, 0)
        self.split, self.length, self.width, self.height = split, count, width, height
        self.cache = cache / f"{split}-{width}x{height}-v{VERSION}" if cache else None
        self.class_names: tuple[str, ...] = CLASSES
        self.problems = Problems()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        if self.cache is None:
            return self._draw(index)
        path = self.cache / f"{index:06d}.npz"
        if path.is_file():
            return _load(path, index)
        sample = self._draw(index)
        _store(path, sample)
        return sample

    def _draw(self, index: int) -> Sample:
        scene = generate_scene(scene_seed(self.split, index), width=self.width, height=self.height)
        masks = np.array([mask for _, mask in scene.instances], bool).reshape(-1, self.height, self.width)
        classes = np.array([CLASSES.index(label) for label, _ in scene.instances], np.int64)
        return Sample(scene.image, masks, classes, np.zeros(len(classes), bool), index)


def _store(path: Path, sample: Sample) -> None:
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, image=sample.image, bits=np.packbits(sample.masks, axis=-1), classes=sample.classes)


def _load(path: Path, index: int) -> Sample:
    with np.load(path) as archive:
        image, bits, classes = archive["image"], archive["bits"], archive["classes"]
    masks = np.unpackbits(bits, axis=-1, count=image.shape[1]).astype(bool)
    return Sample(image, masks, classes, np.zeros(len(classes), bool), index)
