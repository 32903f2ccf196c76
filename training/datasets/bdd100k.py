"""BDD100K in its official layout: ``images/10k/SPLIT/*.jpg`` and ``labels/ins_seg/bitmasks/SPLIT/*.png``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.datasets.problems import ImageLeftOutError, Policy, Problems
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
        truths = self.truth_path(images[0]).parent.glob("*.png")
        self.problems.pictures_are_there(truths, {self.truth_path(path) for path in images}, self.missing)
        self.files = [
            path for path in images if self.problems.truth_is_there(self.truth_path(path), path, self.missing)
        ]

    def truth_path(self, image: Path) -> Path:
        """The bitmask of a picture."""
        return self.root / "labels" / "ins_seg" / "bitmasks" / self.split / f"{image.stem}.png"

    def __len__(self) -> int:
        return len(self.files)

    def bitmask(self, index: int) -> np.ndarray:
        """uint8 H x W x 4 as stored, the ground truth as BDD100K's evaluation takes it. Raises ImageLeftOutError."""
        return self.problems.truth_image(self.truth_path(self.files[index]))

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        picture, truth = self.files[index], self.truth_path(self.files[index])
        image = self.problems.picture(picture, self.missing)
        try:
            bitmask, numbers = parsed(self.problems.upright(truth, self.bitmask(index), picture, image))
        except ImageLeftOutError:
            raise
        except ValueError as error:
            detail = f"{error}; its image is left out"
            raise self.problems.leave_out(truth, "bitmask", "broken mask", detail) from error
        masks, classes, crowd = [], [], []
        for place, category in enumerate(bitmask.category.tolist()):
            is_crowd = bool(bitmask.attributes[place] & (IGNORED | CROWD))
            chosen = [category - 1]
            if not 1 <= category <= len(CATEGORIES):
                chosen = list(range(len(CATEGORIES)))
                if not is_crowd:
                    detail = f"category {category}; an ignored region"
                    self.problems.note(truth, f"instance {numbers[place]}", "unknown category", detail)
            masks += [bitmask.numbers == place + 1] * len(chosen)
            classes += chosen
            crowd += [is_crowd or len(chosen) > 1] * len(chosen)
        stacked = np.array(masks, bool).reshape(-1, *image.shape[:2])
        return Sample(image, stacked, np.array(classes, np.int64), np.array(crowd, bool), index)
