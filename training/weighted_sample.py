"""A sample that says which of its objects, and which places of them, finetuning shall look at harder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.datasets import Sample


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
