"""BDD100K in its official layout: ``images/10k/SPLIT/*.jpg`` and ``labels/ins_seg/bitmasks/SPLIT/*.png``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from training.datasets.problems import Policy, Problems
from training.datasets.sample import Sample
from training.metrics.bdd100k import CATEGORIES, CROWD, IGNORED, parsed


@dataclass
class Bdd100kSet(Sequence[Sample]):
    """The eight classes; instances marked as crowd or ignored come as crowds.

    Raises:
        FileNotFoundError: the split is not there, or (``missing="fatal"``) an image without ground truth.
        BadAnnotationError: ``bad="fatal"`` and a bitmask cannot be right.
    """

    root: Path
    split: str
    bad: Policy = "skip"
    missing: Policy = "fatal"
    class_names: tuple[str, ...] = field(init=False, default=CATEGORIES)

    def __post_init__(self) -> None:
        self.problems = Problems(self.bad)
        folder = self.root / "images" / "10k" / self.split
        images = sorted(folder.glob("*.jpg"))
        if not images:
            raise FileNotFoundError(f"no images {folder}/*.jpg; give bdd100k:ROOT:SPLIT")
        self.files = [
            path for path in images if self.problems.truth_is_there(self.truth_path(path), path, self.missing)
        ]

    def truth_path(self, image: Path) -> Path:
        """The bitmask of a picture."""
        return self.root / "labels" / "ins_seg" / "bitmasks" / self.split / f"{image.stem}.png"

    def __len__(self) -> int:
        return len(self.files)

    def bitmask(self, index: int) -> np.ndarray:
        """uint8 H x W x 4, the ground truth as BDD100K's evaluation takes it."""
        with Image.open(self.truth_path(self.files[index])) as picture:
            return np.array(picture)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        image = self.problems.picture(self.files[index], self.missing)
        truth = self.truth_path(self.files[index])
        try:
            bitmask, numbers = parsed(self.bitmask(index))
        except ValueError as error:
            self.problems.note(truth, "bitmask", "broken mask", f"{error}; its objects are left out")
            return Sample(image, np.zeros((0, *image.shape[:2]), bool), np.zeros(0, np.int64), np.zeros(0, bool), index)
        self.problems.same_size(truth, bitmask.numbers, image)
        known = (bitmask.category >= 1) & (bitmask.category <= len(CATEGORIES))
        for place in np.flatnonzero(~known & (bitmask.attributes & (IGNORED | CROWD) == 0)):
            detail = f"category {bitmask.category[place]}; left out"
            self.problems.note(truth, f"instance {numbers[place]}", "unknown category", detail)
        kept = np.flatnonzero(known)
        masks = np.array([bitmask.numbers == one + 1 for one in kept], bool).reshape(-1, *bitmask.numbers.shape)
        crowd = (bitmask.attributes[kept] & (IGNORED | CROWD)) > 0
        return Sample(image, masks, bitmask.category[kept].astype(np.int64) - 1, crowd, index)
