"""Sets whose truth is an image beside each picture: Cityscapes and BDD100K in their official layouts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from training.datasets.sample import Policy, Problems, Sample
from training.metrics import bdd100k, cityscapes

IMAGE_ENDING = "_leftImg8bit.png"
TRUTH_ENDING = "_gtFine_instanceIds.png"


@dataclass
class BitmapSet(Sequence[Sample]):
    """Pictures below ``root / pictures / split`` with an image of instances for each.

    Raises:
        FileNotFoundError: the split is not there, or (``missing="fatal"``) an image without ground truth.
    """

    root: Path
    split: str
    missing: Policy = "fatal"
    class_names: tuple[str, ...] = field(init=False)
    #: Folder and names of the pictures and of the truth.
    pictures: ClassVar[tuple[str, str]]
    truths: ClassVar[tuple[str, str]]

    def __post_init__(self) -> None:
        self.problems = Problems()
        folder, names = self.root / self.pictures[0] / self.split, self.pictures[1]
        images = sorted(folder.glob(names))
        if not images:
            raise FileNotFoundError(f"no images {folder}/{names}; give cityscapes:ROOT:SPLIT or bdd100k:ROOT:SPLIT")
        truths = set((self.root / self.truths[0] / self.split).glob(self.truths[1]))
        image_of = {self.truth_path(path): path for path in images}
        lonely = dict.fromkeys(truths - image_of.keys(), "its image is not there")
        lonely |= {truth: f"{image_of[truth]} has no such ground truth" for truth in image_of.keys() - truths}
        for truth, problem in sorted(lonely.items()):
            if self.missing == "fatal":
                raise FileNotFoundError(f"{truth}: {problem}")
            self.problems.note(truth, "image", "missing file", f"{problem}; skipped")
        self.files = [path for truth, path in image_of.items() if truth in truths]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        picture, truth = self.files[index], self.truth_path(self.files[index])
        image = self.problems.picture(picture, self.missing)
        truth_image = self.problems.upright(truth, self.truth_image(index), picture, image)
        everywhere = range(len(self.class_names))
        masks: list[np.ndarray] = []
        classes: list[int] = []
        crowd: list[bool] = []
        for mask_hw, label, is_crowd in self.instances(truth, truth_image):
            labels = everywhere if label is None else [label]
            masks += [mask_hw] * len(labels)
            classes += labels
            crowd += [is_crowd or label is None] * len(labels)
        masks_nhw = np.array(masks, bool).reshape(-1, *image.shape[:2])
        return Sample(image, masks_nhw, np.array(classes, np.int64), np.array(crowd, bool), index)

    @abstractmethod
    def truth_path(self, image: Path) -> Path:
        """The truth of a picture."""

    def truth_image(self, index: int) -> np.ndarray:
        """The truth as it is stored. Raises ImageLeftOutError."""
        return self.problems.truth_image(self.truth_path(self.files[index]))

    @abstractmethod
    def instances(self, truth: Path, truth_image: np.ndarray) -> Iterator[tuple[np.ndarray, int | None, bool]]:
        """Go through mask, class (None: unknown, a region to ignore in every class) and whether it is a crowd."""


class CityscapesSet(BitmapSet):
    """The eight classes with instances; groups (``cargroup``) come as crowds."""

    pictures = ("leftImg8bit", f"*/*{IMAGE_ENDING}")
    truths = ("gtFine", f"*/*{TRUTH_ENDING}")
    class_names = tuple(cityscapes.LABELS)

    def truth_path(self, image: Path) -> Path:
        """The instance image of a picture."""
        name = image.name.removesuffix(IMAGE_ENDING) + TRUTH_ENDING
        return self.root / "gtFine" / self.split / image.parent.name / name

    def truth_image(self, index: int) -> np.ndarray:
        """int64 H x W as stored, the ground truth as Cityscapes' evaluation takes it. Raises ImageLeftOutError."""
        truth, ids = self.truth_path(self.files[index]), super().truth_image(index)
        if ids.ndim != 2:
            detail = f"has {ids.shape[-1]} channels, expected one channel of instance ids; left out"
            raise self.problems.leave_out(truth, "image", "damaged truth", detail)
        return ids.astype(np.int64)

    def instances(self, truth: Path, truth_image: np.ndarray) -> Iterator[tuple[np.ndarray, int | None, bool]]:
        """See `BitmapSet`; labels without instances are background."""
        label_ids = list(cityscapes.LABELS.values())
        for number in np.unique(truth_image).tolist():
            label = number if number < 1000 else number // 1000
            if label in label_ids:
                yield truth_image == number, label_ids.index(label), number < 1000
            elif not 0 <= label <= cityscapes.LARGEST_LABEL:
                detail = f"label {label}; an ignored region"
                self.problems.note(truth, f"instance {number}", "unknown category", detail)
                yield truth_image == number, None, True


class Bdd100kSet(BitmapSet):
    """The eight classes; instances marked as crowd or ignored come as crowds."""

    pictures = ("images/10k", "*.jpg")
    truths = ("labels/ins_seg/bitmasks", "*.png")
    class_names = bdd100k.CATEGORIES

    def truth_path(self, image: Path) -> Path:
        """The bitmask of a picture: uint8 H x W x 4."""
        return self.root / self.truths[0] / self.split / f"{image.stem}.png"

    def instances(self, truth: Path, truth_image: np.ndarray) -> Iterator[tuple[np.ndarray, int | None, bool]]:
        """See `BitmapSet`."""
        try:
            bitmask, numbers = bdd100k.parsed(truth_image)
        except ValueError as error:
            detail = f"{error}; its image is left out"
            raise self.problems.leave_out(truth, "bitmask", "broken mask", detail) from error
        for place, category in enumerate(bitmask.category.tolist()):
            is_crowd = bool(bitmask.attributes[place] & (bdd100k.IGNORED | bdd100k.CROWD))
            label = category - 1 if 1 <= category <= len(bdd100k.CATEGORIES) else None
            if label is None and not is_crowd:
                detail = f"category {category}; an ignored region"
                self.problems.note(truth, f"instance {numbers[place]}", "unknown category", detail)
            yield bitmask.numbers == place + 1, label, is_crowd
