"""How far polygons are from other polygons of the same mask: the two-way Hausdorff distance of their outlines.

Shapes: S segments; P sample points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import shapely

from integration.polygons.convert import Polygon

SAMPLE_STEP_PX = 0.25


def deviation_px(
    polygons: Sequence[Polygon], reference: Sequence[Polygon], *, step_px: float = SAMPLE_STEP_PX
) -> float:
    """Two-way Hausdorff distance between the outlines.

    Args:
        polygons: in pixel edges.
        reference: likewise, usually the exact contours.
        step_px: measured at points no farther apart than this.

    Returns:
        Pixels, at most half a step too small. 0 if both are empty, infinity if only one is.
    """
    here, there = _segments_px(polygons), _segments_px(reference)
    if not len(here) or not len(there):
        return 0.0 if len(here) == len(there) else float("inf")
    return max(_farthest_px(here, there, step_px), _farthest_px(there, here, step_px))


def _segments_px(polygons: Iterable[Polygon]) -> np.ndarray:
    """Both ends (S, 2, 2) of the sides of all rings; a ring of one point, as others make them, has one of no length."""
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]
    ends = [np.stack([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in rings]
    return np.concatenate(ends) if ends else np.empty((0, 2, 2))


def _farthest_px(segments_px: np.ndarray, others_px: np.ndarray, step_px: float) -> float:
    start, line = segments_px[:, 0], segments_px[:, 1] - segments_px[:, 0]
    counts = np.ceil(np.hypot(line[:, 0], line[:, 1]) / step_px).astype(np.int64).clip(min=1)
    segment = np.repeat(np.arange(len(counts)), counts)
    share = (np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)) / counts[segment]
    samples = shapely.points(start[segment] + share[:, None] * line[segment])
    long = (others_px[:, 0] != others_px[:, 1]).any(axis=1)
    others = np.concatenate([shapely.linestrings(others_px[long]), shapely.points(others_px[~long, 0])])
    _, distance = shapely.STRtree(others).query_nearest(samples, return_distance=True, all_matches=False)
    return float(distance.max())
