"""Differences between two rows with intervals, paired by image and by seed.

One bootstrap over both: every resample draws scenes with replacement, and seeds with replacement; both rows are
measured on the same draw, so what a scene or a seed is easy or hard for both cancels. A resample of S seeds varies
less than S new ones would, by sqrt((S - 1) / S); deviations from the seeds' mean are stretched by its inverse.
Shapes: N scenes, S seeds, B resamples, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from training.evaluation.resampling import average_precision, draws, ranked_matches

KINDS = ("mask", "boundary")
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Of an AP in points, second row minus first.

    Attributes:
        mean: over the seeds, on all scenes. low, high: the interval.
        by_seed: of each seed on all scenes.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def significant(self) -> bool:
        """The interval leaves out 0, and every seed agrees on the sign."""
        return self.low * self.high > 0 and all(one * self.mean > 0 for one in self.by_seed)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"significant": self.significant}


def resampled_ap(
    dataset: dict[str, Any], found: Sequence[dict[str, Any]], weights: np.ndarray, *, ratio: float
) -> dict[str, np.ndarray]:
    """ "mask" and "boundary" AP in points under (B, N) weights of the scenes: (B,) each."""
    values = {}
    for kind in KINDS:
        ranked = ranked_matches(dataset, found, boundary=kind == "boundary", ratio=ratio)
        by_class = np.stack([average_precision(one, weights).mean(1) for one in ranked], axis=1)
        there = ~np.isnan(by_class)  # a resample may hold nothing of a class
        values[kind] = 100 * np.where(there, by_class, 0).sum(1) / np.maximum(there.sum(1), 1)
    return values


def scene_weights(scenes: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(1 + B, N): all scenes once, then B draws."""
    return np.concatenate((np.ones((1, scenes), np.int64), draws(scenes, resamples, seed=1)))


def difference(first: np.ndarray, second: np.ndarray, confidence: float = CONFIDENCE) -> Difference:
    """From AP of both rows under the same weights: (S, 1 + B) each, the first column being all scenes.

    Raises:
        ValueError: the shapes differ, or there is no seed.
    """
    if first.shape != second.shape or not len(first):
        raise ValueError(f"paired differences need the same seeds and draws, got {first.shape} and {second.shape}")
    apart = second - first
    seeds, resamples = apart.shape[0], apart.shape[1] - 1
    by_seed = tuple(float(one) for one in apart[:, 0])
    drawn = np.random.default_rng(2).integers(seeds, size=(resamples, seeds))
    resampled = apart[drawn, np.arange(1, resamples + 1)[:, None]]  # (B, S)
    middle = apart[:, 1:].mean(0)
    stretch = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
    means = middle + stretch * (resampled - middle[:, None]).mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(apart[:, 0].mean()), float(low), float(high), by_seed)
