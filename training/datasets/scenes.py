"""Generated scenes as a set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.datasets.sample import Problems, Sample
from training.synthetic.scenes import CLASSES, generate_scene, scene_seed

ENDLESS = 1_000_000  # scenes of a split when no count is given: more than any run sees


class SceneSet(Sequence[Sample]):
    """Generated scenes; each is drawn when it is read."""

    def __init__(self, split: str, count: int = ENDLESS, *, width: int = 384, height: int = 288) -> None:
        scene_seed(split, 0)
        self.split, self.length, self.width, self.height = split, count, width, height
        self.class_names: tuple[str, ...] = CLASSES
        self.problems = Problems()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        scene = generate_scene(scene_seed(self.split, index), width=self.width, height=self.height)
        masks = np.array([mask for _, mask in scene.instances], bool).reshape(-1, self.height, self.width)
        classes = np.array([CLASSES.index(label) for label, _ in scene.instances], np.int64)
        return Sample(scene.image, masks, classes, np.zeros(len(classes), bool), index)
