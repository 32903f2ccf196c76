"""Simulated clicks: in the middle of the largest error, as RITM's evaluation places them (Sofiiuk et al., 2022)."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

Click = tuple[float, float, bool]


def next_click(truth: np.ndarray, guess: np.ndarray, *, rng: np.random.Generator | None = None) -> Click | None:
    """Choose the point farthest inside the larger kind of error (missed or too much); None without any error.

    Args:
        truth, guess: bool H x W.
        rng: for training, draw among the points at least half as deep instead.

    Returns:
        x, y of the pixel's centre, and whether the click is positive.
    """
    missed, extra = truth & ~guess, guess & ~truth
    missed_depth, extra_depth = _depth(missed), _depth(extra)
    largest_depth = max(missed_depth.max(initial=0.0), extra_depth.max(initial=0.0))
    if largest_depth <= 0:
        return None
    is_positive = bool(missed_depth.max(initial=0.0) >= extra_depth.max(initial=0.0))
    depth = missed_depth if is_positive else extra_depth
    if rng is None:
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    else:
        rows, columns = np.nonzero(depth >= 0.5 * largest_depth)
        place = int(rng.integers(len(rows)))
        row, column = rows[place], columns[place]
    return float(column) + 0.5, float(row) + 0.5, is_positive


def _depth(region: np.ndarray) -> np.ndarray:
    """Distance of each pixel of a region to its boundary; the image's border is one, too."""
    if not region.any():
        return np.zeros(region.shape, np.float32)
    return distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]


def flawed_mask(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Distort a true mask by smooth random errors along its boundary, to train corrections; bool H x W."""
    distance = _depth(truth) - _depth(~truth)
    side = max(truth.shape)
    noise = gaussian_filter(rng.standard_normal(truth.shape).astype(np.float32), rng.uniform(0.02, 0.12) * side)
    noise *= rng.uniform(0.01, 0.15) * side / max(float(noise.std()), 1e-9)
    return np.asarray(distance + noise > 0)
