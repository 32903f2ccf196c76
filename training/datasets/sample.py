"""What every set holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np


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


def narrowed(sample: Sample, names: Sequence[str], classes: Sequence[str]) -> Sample:
    """Only the objects of some classes, numbered in their order; `names` are those of the sample's set."""
    number = np.array([classes.index(name) if name in classes else -1 for name in names], np.int64)
    labels = number[sample.classes] if len(sample.classes) else sample.classes
    kept = labels >= 0
    return replace(sample, masks=sample.masks[kept], classes=labels[kept], crowd=sample.crowd[kept])


class MadeSamples(Sequence[Sample]):
    """A set whose samples are made from others when they are asked for.

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
