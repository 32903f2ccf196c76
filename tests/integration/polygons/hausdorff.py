"""How far polygons are from other polygons of the same mask: the two-way Hausdorff distance of their outlines.

Shapes: S sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import shapely

from integration.polygons.contours import Polygon

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
    here, there = _sides(polygons), _sides(reference)
    if not len(here) or not len(there):
        return 0.0 if len(here) == len(there) else float("inf")
    return max(_farthest_px(here, there, step_px), _farthest_px(there, here, step_px))


def _sides(polygons: Iterable[Polygon]) -> np.ndarray:
    """The sides of all rings as lines (S,); a ring of one point, as others make them, has one of no length."""
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]
    ends = [np.stack([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in rings]
    return np.asarray(shapely.linestrings(np.concatenate(ends))) if ends else np.empty(0)


def _farthest_px(lines: np.ndarray, other_lines: np.ndarray, step_px: float) -> float:
    divisible = shapely.length(lines) > 0  # GEOS cannot divide a line of no length
    parts = shapely.segmentize(lines[divisible], step_px), lines[~divisible]
    samples = shapely.points(np.concatenate([shapely.get_coordinates(part) for part in parts]))
    _, distance = shapely.STRtree(other_lines).query_nearest(samples, return_distance=True, all_matches=False)
    return float(distance.max())
