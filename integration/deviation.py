"""How far polygons are from other polygons of the same mask: the two-way Hausdorff distance of their outlines.

Shapes: S segments; P sample points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import shapely

from integration.polygons import Polygon

SAMPLE_STEP_PX = 0.25


def deviation_px(polygons: Sequence[Polygon], reference: Sequence[Polygon]) -> float:
    """Two-way Hausdorff distance between the outlines, measured at points no farther apart than `SAMPLE_STEP_PX`.

    Args:
        polygons: in pixel edges.
        reference: likewise, usually the exact contours.

    Returns:
        Pixels, at most half a step too small. 0 if both are empty, infinity if only one is.
    """
    here, there = _segments(polygons), _segments(reference)
    if not len(here) or not len(there):
        return 0.0 if len(here) == len(there) else float("inf")
    return max(_farthest_px(here, there), _farthest_px(there, here))


def _segments(polygons: Iterable[Polygon]) -> np.ndarray:
    """Line strings (S,)."""
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]
    ends = [np.stack([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in rings]
    return shapely.linestrings(np.concatenate(ends)) if ends else np.array([])


def _farthest_px(segments: np.ndarray, others: np.ndarray) -> float:
    samples = shapely.points(shapely.get_coordinates(shapely.segmentize(segments, SAMPLE_STEP_PX)))
    _, distance = shapely.STRtree(others).query_nearest(samples, return_distance=True, all_matches=False)
    return float(distance.max())
