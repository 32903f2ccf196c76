"""Samples, the content of every set; and its problems, which are reported with file and record, counted and skipped."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from model.images import ImageError, read_header, read_image, turn_upright

Policy = Literal["skip", "fatal"]
logger = logging.getLogger(__name__)
_LOGGED = 5  # problems of one kind that are logged one by one; the rest is only counted


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture with its truth.

    Attributes:
        image: RGB uint8, H x W x 3.
        masks: bool, N x H x W.
        classes: int64, N, indices into the set's classes.
        crowd: bool, N: regions of many objects; not trained on, ignored in evaluation.
        image_id: unique in its set.
    """

    image: np.ndarray
    masks: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    image_id: int


@dataclass(frozen=True, slots=True)
class WeightedSample(Sample):
    """A picture with its truth and the weights of its mask losses.

    Attributes:
        weights: float32, N, of each object's mask losses.
        bands: bool, N x H x W, where people moved the outline.
        band_weight: factor of the places in a band, on top of the object's weight.
    """

    weights: np.ndarray
    bands: np.ndarray
    band_weight: float


class SampleSet(Protocol):
    """A set to train on: numbered samples of named classes."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


def narrowed(sample: Sample, names: Sequence[str], classes: Sequence[str]) -> Sample:
    """Keep only the objects of `classes`, renumbered in their order; `names` are the classes of the sample's set."""
    new_labels = np.array([classes.index(name) if name in classes else -1 for name in names], np.int64)
    labels = new_labels[sample.classes] if len(sample.classes) else sample.classes
    is_kept = labels >= 0
    return replace(sample, masks=sample.masks[is_kept], classes=labels[is_kept], crowd=sample.crowd[is_kept])


class MadeSamples(Sequence[Sample]):
    """A set whose samples are computed when they are read.

    Args:
        indices: one a sample. sample_at: makes the sample of an index.
    """

    def __init__(
        self, indices: Sequence[int], sample_at: Callable[[int], Sample], class_names: Sequence[str] = ()
    ) -> None:
        self._indices, self._sample_at, self.class_names = indices, sample_at, tuple(class_names)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self._sample_at(self._indices[index])


class BadAnnotationError(ValueError):
    """A file of a set is damaged, and its policy is ``fatal``."""


class ImageLeftOutError(BadAnnotationError):
    """An image that cannot be read or does not fit its truth; it is noted as a problem, readers of a set skip it."""


def usable_samples(samples: Sequence[Sample]) -> Iterator[tuple[int, Sample]]:
    """Go through a set: index and sample of each image that is not left out; the others are named in the log."""
    for index in range(len(samples)):
        try:
            sample = samples[index]
        except ImageLeftOutError as error:
            logger.warning("left out: %s", error)
            continue
        yield index, sample


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: the file that says so.
        record: which of its records, ``annotation 17`` for instance.
        kind: ``degenerate polygon``, ``box outside``, ``unknown category``, ``missing file``...
        detail: the value, and what was done about it.
        repaired: nothing is lost: the record could be read all the same.
    """

    file: str
    record: str
    kind: str
    detail: str
    repaired: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.record}: {self.kind}: {self.detail}"


@dataclass
class Problems:
    """The problems of a set, as far as it was read."""

    entries: list[Problem] = field(default_factory=list)
    _known: set[Problem] = field(default_factory=set, repr=False)
    _counts: Counter[str] = field(default_factory=Counter, repr=False)

    def note(self, file: object, record: str, kind: str, detail: str, *, repaired: bool = False) -> None:
        """Report a problem."""
        problem = Problem(str(file), record, kind, detail, repaired)
        if problem in self._known:  # the same image read again
            return
        self._known.add(problem)
        self.entries.append(problem)
        self._counts[kind] += 1
        count = self._counts[kind]
        if count <= _LOGGED:
            logger.warning("%s%s", problem, "; more of this kind are only counted" if count == _LOGGED else "")

    def leave_out(self, file: object, record: str, kind: str, detail: str) -> ImageLeftOutError:
        """Note an image that cannot be used; returns the error to raise."""
        self.note(file, record, kind, detail)
        return ImageLeftOutError(str(Problem(str(file), record, kind, detail)))

    def picture(self, path: Path, missing: Policy) -> np.ndarray:
        """RGB pixels (H, W, 3) of a picture.

        Raises:
            FileNotFoundError: it is not there.
            ImageLeftOutError: it is damaged; BadAnnotationError where ``missing`` is ``fatal``.
        """
        try:
            return read_image(path)
        except FileNotFoundError:
            raise
        except (ImageError, OSError) as error:
            if missing == "fatal":
                fix = "replace it; `data check --fix` writes a set without it, TRAINING.MISSING_IMAGES skip trains so"
                raise BadAnnotationError(f"{path}: image: damaged image: {error}; {fix}") from error
            raise self.leave_out(path, "image", "damaged image", f"{error}; left out") from error

    def truth_image(self, path: Path) -> np.ndarray:
        """Pixels of an image file that holds ground truth.

        Raises:
            ImageLeftOutError: it is damaged.
        """
        try:
            with Image.open(path) as picture:
                return np.array(picture)
        except Exception as error:  # whatever Pillow's parsing of a damaged file runs into
            detail = f"{type(error).__name__}: {error}; its image is left out"
            raise self.leave_out(path, "image", "damaged truth", detail) from error

    def upright(self, truth: Path, truth_hw: np.ndarray, picture: Path, image: np.ndarray) -> np.ndarray:
        """Turn an array of truth (H, W, ...) as its picture's EXIF orientation says, unless it fits already.

        Raises:
            ImageLeftOutError: they differ in size.
        """
        if truth_hw.shape[:2] == image.shape[:2]:
            return truth_hw
        header = read_header(picture)
        if header.orientation != 1 and truth_hw.shape[:2] == header.stored_hw:
            detail = f"{picture.name} is turned by EXIF {header.orientation}, its truth is not: it is turned too"
            self.note(truth, "image", "turned image", detail, repaired=True)
            return turn_upright(truth_hw, header.orientation)
        (height, width), (rows, columns) = image.shape[:2], truth_hw.shape[:2]
        detail = f"the picture is {width} x {height}, its truth {columns} x {rows}; left out"
        raise self.leave_out(truth, "image", "other size", detail)

    @property
    def lost(self) -> int:
        """Number of problems that lost an image, an object or a part of one."""
        return sum(not problem.repaired for problem in self.entries)

    def counts(self) -> Counter[str]:
        """Number of problems of each kind."""
        return self._counts.copy()
