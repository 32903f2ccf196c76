"""What every set holds."""

from __future__ import annotations

from dataclasses import dataclass

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
