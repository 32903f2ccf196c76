"""Polygons of a mask's exact contours: holes sorted to their parts, small ones left out and counted.

Shapes: H, W mask size; N, M vertices. Rings are not closed by a repeated point; exteriors have a positive shoelace area
in (x right, y down), holes a negative one.

Cut a polygon with holes open, so that one ring describes it (Label Studio polygons know no holes).

Each hole is joined to the rest by a bridge that is walked there and back: it encloses nothing, so filling the ring
gives the polygon exactly, under the even-odd and the non-zero rule. Bridges run between existing vertices, hence add no
new coordinates that could be rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from scipy import ndimage
from scipy.spatial import cKDTree

from integration.polygons.contours import trace_rings
from integration.polygons.simplify import signed_area


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One connected area.

    Attributes:
        tolerance_px: the two-way Hausdorff distance to the exact contour is at most this; 0 for the exact contour.
    """

    exterior: np.ndarray
    holes: tuple[np.ndarray, ...] = ()
    tolerance_px: float = 0.0

    @property
    def vertex_count(self) -> int:
        """Vertices of all rings together."""
        return len(self.exterior) + sum(len(hole) for hole in self.holes)

    @property
    def area_px(self) -> float:
        """Area without the holes, in pixels."""
        return signed_area(self.exterior) + sum(signed_area(hole) for hole in self.holes)


@dataclass(frozen=True, slots=True, eq=False)
class Outlined:
    """The polygons of one mask, and what they leave out.

    Attributes:
        polygons: in raster order of their first pixel.
    """

    polygons: list[Polygon]
    parts_dropped: int = 0
    holes_filled: int = 0


def exact_polygons(mask_hw: np.ndarray, *, min_area_px: float = 0.0) -> list[Polygon]:
    """The crack contours of a mask (bool, H x W), one polygon for each 4-connected part."""
    return exact_outline(mask_hw, min_area_px=min_area_px).polygons


def exact_outline(mask_hw: np.ndarray, *, min_area_px: float = 0.0) -> Outlined:
    """Outline a mask as `exact_polygons` does; count the parts (holes filled) and holes smaller than `min_area_px`."""
    rows = np.flatnonzero(mask_hw.any(axis=1))
    if not len(rows):
        return Outlined([])
    columns = np.flatnonzero(mask_hw[rows[0] : rows[-1] + 1].any(axis=0))
    window = mask_hw[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    offset = np.array([columns[0], rows[0]], dtype=np.float64)
    rings = [(signed_area(ring), ring) for ring in trace_rings(window)]
    parts = [ring for area, ring in rings if area > 0 and area >= min_area_px]
    holes = [(-area, ring) for area, ring in rings if area < 0]
    owners = _owners(window, parts, [ring for _, ring in holes], len(rings) - len(holes))
    holes_of: dict[int, list[np.ndarray]] = {}
    filled = 0
    for (area, hole), owner in zip(holes, owners, strict=True):
        if area >= min_area_px:
            holes_of.setdefault(owner, []).append(hole + offset)
        elif owner >= 0:
            filled += 1
    polygons = [Polygon(ring + offset, tuple(holes_of.get(index, ()))) for index, ring in enumerate(parts)]
    return Outlined(polygons, len(rings) - len(holes) - len(parts), filled)


def _owners(window: np.ndarray, parts: list[np.ndarray], holes: list[np.ndarray], part_count: int) -> list[int]:
    """For each hole, the part around it; -1 when that was too small to keep."""
    if part_count == 1 or not holes:
        return [0 if parts else -1] * len(holes)
    labels, _ = ndimage.label(window)  # 4-connected, as the rings are
    part_of = {int(labels[_pixel_beside(ring)]): index for index, ring in enumerate(parts)}
    return [part_of.get(int(labels[_pixel_beside(hole)]), -1) for hole in holes]


def _pixel_beside(ring: np.ndarray) -> tuple[int, int]:
    """Row and column of a mask pixel at the first edge of a ring, which has the mask on its right-hand side."""
    (x, y), (next_x, next_y) = ring[0], ring[1]
    if y == next_y:
        return (int(y), int(x)) if next_x > x else (int(y) - 1, int(x) - 1)
    return (int(y), int(x) - 1) if next_y > y else (int(y) - 1, int(x))


def cut_open(exterior: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """Join the holes to the exterior by the shortest bridges found.

    Args:
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
