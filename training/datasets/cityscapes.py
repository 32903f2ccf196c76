"""Cityscapes in its official layout: ``leftImg8bit/SPLIT/CITY/*.png`` and ``gtFine/SPLIT/CITY/*_instanceIds.png``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from training.datasets.problems import Policy, Problems
from training.datasets.sample import Sample
from training.metrics.cityscapes import LABELS, LARGEST_LABEL

IMAGE_ENDING = "_leftImg8bit.png"
TRUTH_ENDING = "_gtFine_instanceIds.png"


@dataclass
class CityscapesSet(Sequence[Sample]):
    """The eight classes with instances; groups (``cargroup``) come as crowds.

    Raises:
        FileNotFoundError: the split is not there, or (``missing="fatal"``) an image without ground truth.
        BadAnnotationError: ``bad="fatal"`` and an instance has a label that Cityscapes does not know.
    """

    root: Path
    split: str
    bad: Policy = "skip"
    missing: Policy = "fatal"
    class_names: tuple[str, ...] = field(init=False, default=tuple(LABELS))

    def __post_init__(self) -> None:
        self.problems = Problems(self.bad)
        folder = self.root / "leftImg8bit" / self.split
        images = sorted(folder.glob(f"*/*{IMAGE_ENDING}"))
        if not images:
            raise FileNotFoundError(f"no images {folder}/CITY/*{IMAGE_ENDING}; give cityscapes:ROOT:SPLIT")
        self.files = [
            path for path in images if self.problems.truth_is_there(self.truth_path(path), path, self.missing)
        ]

    def truth_path(self, image: Path) -> Path:
        """The instance image of a picture."""
        name = image.name.removesuffix(IMAGE_ENDING) + TRUTH_ENDING
        return self.root / "gtFine" / self.split / image.parent.name / name

    def __len__(self) -> int:
        return len(self.files)

    def instance_ids(self, index: int) -> np.ndarray:
        """int H x W, the ground truth as Cityscapes' evaluation takes it."""
        with Image.open(self.truth_path(self.files[index])) as picture:
            return np.array(picture).astype(np.int64)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        image = self.problems.picture(self.files[index], self.missing)
        ids = self.instance_ids(index)
        self.problems.same_size(self.truth_path(self.files[index]), ids, image)
        numbers = list(LABELS.values())
        there = []
        for one in np.unique(ids).tolist():
            label = one if one < 1000 else one // 1000
            if not 0 <= label <= LARGEST_LABEL:
                truth = self.truth_path(self.files[index])
                self.problems.note(truth, f"instance {one}", "unknown category", f"label {label}; left out")
            elif label in numbers:
                there.append((one, numbers.index(label)))
        masks = np.array([ids == one for one, _ in there], bool).reshape(-1, *ids.shape)
        classes = np.array([label for _, label in there], np.int64)
        return Sample(image, masks, classes, np.array([one < 1000 for one, _ in there], bool), index)
