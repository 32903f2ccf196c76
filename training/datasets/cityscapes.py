"""Cityscapes in its official layout: ``leftImg8bit/SPLIT/CITY/*.png`` and ``gtFine/SPLIT/CITY/*_instanceIds.png``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
        truths = (self.root / "gtFine" / self.split).glob(f"*/*{TRUTH_ENDING}")
        self.problems.pictures_are_there(truths, {self.truth_path(path) for path in images}, self.missing)
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
        """int64 H x W as stored, the ground truth as Cityscapes' evaluation takes it. Raises ImageLeftOutError."""
        truth = self.truth_path(self.files[index])
        ids = self.problems.truth_image(truth)
        if ids.ndim != 2:
            detail = f"has {ids.shape[-1]} channels, expected one channel of instance ids; left out"
            raise self.problems.leave_out(truth, "image", "damaged truth", detail)
        return ids.astype(np.int64)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        picture, truth = self.files[index], self.truth_path(self.files[index])
        image = self.problems.picture(picture, self.missing)
        ids = self.problems.upright(truth, self.instance_ids(index), picture, image)
        label_ids = list(LABELS.values())
        masks, classes, crowd = [], [], []
        for number in np.unique(ids).tolist():
            label = number if number < 1000 else number // 1000
            if label in label_ids:
                chosen = [label_ids.index(label)]
            elif 0 <= label <= LARGEST_LABEL:
                continue
            else:
                detail = f"label {label}; an ignored region"
                self.problems.note(truth, f"instance {number}", "unknown category", detail)
                chosen = list(range(len(label_ids)))
            masks += [ids == number] * len(chosen)
            classes += chosen
            crowd += [number < 1000 or len(chosen) > 1] * len(chosen)
        stacked = np.array(masks, bool).reshape(-1, *ids.shape)
        return Sample(image, stacked, np.array(classes, np.int64), np.array(crowd, bool), index)
