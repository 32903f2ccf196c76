"""Cut a polygon with holes open, so that one ring describes it (Label Studio polygons know no holes).

Each hole is joined to the rest by a bridge that is walked there and back: it encloses nothing, so filling the ring
gives the polygon exactly, under the even-odd and the non-zero rule. Bridges run between existing vertices, hence add no
new coordinates that could be rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from scipy.spatial import cKDTree


def cut_open(exterior: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """Join the holes to the exterior by the shortest bridges found.

    Args:
        exterior: (N, 2), x and y.
        holes: (M, 2) each, inside the exterior, walked in the opposite direction.

    Returns:
        (N + sum of M + 2 per hole, 2): one closed ring that touches itself along the bridges.
    """
    ring, waiting = np.asarray(exterior), [np.asarray(hole) for hole in holes]
    free = shapely.Polygon(exterior, waiting)
    bridges: list[shapely.LineString] = []
    while waiting:
        index, at_ring, at_hole = _closest_visible(ring, waiting, free, bridges)
        hole = waiting.pop(index)
        if not np.array_equal(ring[at_ring], hole[at_hole]):
            bridges.append(shapely.LineString([ring[at_ring], hole[at_hole]]))
        loop = np.roll(hole, -at_hole, axis=0)
        ring = np.concatenate([ring[: at_ring + 1], loop, loop[:1], ring[at_ring:]])
    return ring


def _closest_visible(
    ring: np.ndarray, holes: list[np.ndarray], free: shapely.Polygon, bridges: list[shapely.LineString]
) -> tuple[int, int, int]:
    """Hole, vertex of the ring, vertex of that hole: the shortest bridge inside the polygon that crosses no other.

    A polygon with holes can always be triangulated, so such a pair exists; nearby pairs are tried first.
    """
    tree = cKDTree(ring)
    owner = np.repeat(np.arange(len(holes)), [len(hole) for hole in holes])
    vertex = np.concatenate([np.arange(len(hole)) for hole in holes])
    points = np.concatenate(holes)
    tried = 0
    neighbours = 1
    while tried < len(ring):
        neighbours = min(neighbours, len(ring))
        distance, at_ring = tree.query(points, k=np.arange(tried + 1, neighbours + 1))
        for flat in np.argsort(distance, axis=None, kind="stable"):
            point, rank = np.unravel_index(flat, distance.shape)
            start, end = ring[at_ring[point, rank]], points[point]
            if _is_clear(start, end, free, bridges):
                return int(owner[point]), int(at_ring[point, rank]), int(vertex[point])
        tried, neighbours = neighbours, neighbours * 4
    raise ValueError(f"no bridge from a hole to its exterior: {free.wkt[:200]} is not a valid polygon")


def _is_clear(start: np.ndarray, end: np.ndarray, free: shapely.Polygon, bridges: list[shapely.LineString]) -> bool:
    if np.array_equal(start, end):
        return True
    line = shapely.LineString([start, end])
    return bool(free.covers(line)) and not any(line.crosses(bridge) for bridge in bridges)
