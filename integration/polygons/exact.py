"""Exact outlines of a mask: the cracks between pixels as rings on the pixel lattice, sorted to polygons; filled back.

Shapes: H, W mask size; N, M vertices or corners of a ring; E edges; K crossings of edges with pixel rows. A lattice
point (x, y) is the top left corner of pixel [y, x], so a pixel covers [x, x + 1] x [y, y + 1]. Rings hold corners only
(no collinear points) and are not closed by a repeated point. Outer rings have a positive shoelace area in (x right, y
down), rings of holes a negative one. A pixel is inside rings when its centre is, by the even-odd rule.

Label Studio polygons know no holes, so `cut_open` joins each hole to the rest by a bridge that is walked there and
back: it encloses nothing, so filling the ring gives the polygon exactly, under the even-odd and the non-zero rule.
Bridges run between existing vertices, hence add no new coordinates that could be rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from scipy import ndimage
from scipy.spatial import cKDTree

from integration.polygons.simplify import signed_area


def trace_rings(mask_hw: np.ndarray) -> list[np.ndarray]:
    """Trace every boundary of a mask.

    Returns:
        Int64 arrays (N, 2) of (x, y) corners. Each ring is simple: where pixels touch only diagonally, rings share a
        point but none passes through it twice, so a ring is the boundary between two 4-connected areas.
    """
    edges = _VerticalEdges(mask_hw)
    following, pinches = edges.following()
    walk, begins = _cycles(following)
    points = edges.corners(np.array(walk, dtype=np.int64))
    corners_xy = np.stack([points % edges.stride, points // edges.stride], axis=1)
    rings = [corners_xy[2 * a : 2 * b] for a, b in pairwise(begins)]
    if not len(pinches):
        return rings
    visits = np.flatnonzero(np.isin(points, pinches))
    of_ring = np.split(visits, np.searchsorted(visits, 2 * np.array(begins[1:-1])))
    return [
        part
        for ring, begin, seen in zip(rings, begins, of_ring, strict=False)
        for part in _split_where_pinched(ring, (seen - 2 * begin).tolist())
    ]


class _VerticalEdges:
    """The vertical edges of all contours, in raster order of their upper ends; each has a corner at both ends.

    Only two things are done to every pixel: compare it with the one to the left, and look for what differs. Ends of one
    lattice column, in order, pair up to its vertical edges; ends of one row to its horizontal edges. That makes linking
    a matter of sorting, without a walk over pixels.
    """

    def __init__(self, mask_hw: np.ndarray) -> None:
        height, width = mask_hw.shape
        self.stride = width + 2
        padded = np.zeros((height + 2, self.stride), dtype=np.bool_)
        padded[1:-1, 1:-1] = mask_hw
        pixels = padded.ravel()
        cracked = pixels[1:] ^ pixels[:-1]
        crack = np.flatnonzero(cracked)  # between this pixel and the one to its right
        left = pixels[crack]  # whether the mask is on the left
        starts = ~cracked[crack - self.stride] | (left ^ pixels[crack - self.stride])
        ends = ~cracked[crack + self.stride] | (left ^ pixels[crack + self.stride])
        # Lattice points as numbers: rows and columns of the padded pixel up and left of them.
        upper, lower = crack[starts] - self.stride, crack[ends]
        self._upper, self._downwards = upper, left[starts]
        by_column = _stable_order(upper % self.stride)
        self._end_below = np.empty(len(upper), dtype=np.int64)  # of each edge, its lower end
        self._end_below[by_column] = _stable_order(lower % self.stride)
        self._edge_above = np.empty_like(self._end_below)  # and the other way round
        self._edge_above[self._end_below] = np.arange(len(upper))
        self._lower = lower

    def following(self) -> tuple[list[int], np.ndarray]:
        """The next edge of each, with the mask on the right-hand side as seen on screen; and where corners meet."""
        count = len(self._upper)
        points = np.concatenate([self._upper, self._lower])
        # Of two at one point, the one with the mask on its left ends the horizontal edge from the left: so rings go
        # around areas that are connected by sides.
        second = np.concatenate([~self._downwards, ~self._downwards[self._edge_above]])
        order = np.argsort(points * 2 + second, kind="stable")  # two sorted runs: merged in one pass
        first, last = order[0::2], order[1::2]
        across = np.empty(2 * count, dtype=np.int64)
        across[first], across[last] = last, first
        leaving = np.where(self._downwards, self._end_below + count, np.arange(count))
        entered = across[leaving]
        self._horizontal = np.stack([points[leaving], points[entered]], axis=1)
        following = np.where(entered < count, entered, self._edge_above[entered - count])
        in_order = points[order]
        return following.tolist(), in_order[1:][in_order[1:] == in_order[:-1]]

    def corners(self, edges: np.ndarray) -> np.ndarray:
        """The corners (N,) after each of these edges and before the next, as numbers: y * stride + x."""
        return self._horizontal[edges].ravel()


def _stable_order(columns: np.ndarray) -> np.ndarray:
    """Stable order of small numbers; 16 bits are sorted by radix."""
    small = len(columns) and columns.max() < 1 << 16
    return np.argsort(columns.astype(np.uint16) if small else columns, kind="stable")


def _cycles(following: list[int]) -> tuple[list[int], list[int]]:
    """All edges, cycle by cycle, and where each cycle begins; the last number is the end."""
    seen = bytearray(len(following))
    walk: list[int] = []
    begins = [0]
    start = 0
    while (start := seen.find(0, start)) >= 0:
        node = start
        while not seen[node]:
            seen[node] = 1
            walk.append(node)
            node = following[node]
        begins.append(len(walk))
    return walk, begins


def _split_where_pinched(ring: np.ndarray, visits: list[int]) -> list[np.ndarray]:
    """Cut a ring wherever it comes back to a point, so that no ring touches itself (OGC validity).

    Args:
        visits: the corners at points that some ring passes twice, ascending.
    """
    points = list(map(tuple, ring[visits].tolist()))
    if len(set(points)) == len(points):
        return [ring]
    rings = []
    # What was walked since each open visit; before all visits, since none.
    stretches = [[ring[: visits[0]]]]
    open_points: list[tuple[int, ...] | None] = [None]
    for point, begin, end in zip(points, visits, [*visits[1:], len(ring)], strict=True):
        if point in open_points:
            since = open_points.index(point)
            rings.append(np.concatenate([piece for pieces in stretches[since:] for piece in pieces]))
            del open_points[since:], stretches[since:]
        open_points.append(point)
        stretches.append([ring[begin:end]])
    return [*rings, np.concatenate([piece for pieces in stretches for piece in pieces])]


def fill_even_odd(rings_px: Sequence[np.ndarray], mask_hw: np.ndarray) -> None:
    """Set the pixels of a mask whose centres lie inside the rings.

    A segment that is passed an even number of times (the two sides of a keyhole cut) changes nothing, exactly, in
    either direction of travel. A centre on an edge counts as inside on the left and upper side of an area only.

    Args:
        rings_px: closed rings, float (N, 2) of x, y in pixel edges, the end joined to the start. Parts outside the
            mask are clipped.
        mask_hw: bool, H x W, changed in place; pixels already set stay set.
    """
    starts = np.concatenate([np.asarray(ring, dtype=np.float64) for ring in rings_px])
    ends = np.concatenate([np.roll(np.asarray(ring, dtype=np.float64), -1, axis=0) for ring in rings_px])
    rows, columns = _crossings(starts, ends, *mask_hw.shape)
    if not len(rows):
        return
    top, left = rows.min(), columns.min()
    window = mask_hw[top : rows.max() + 1, left : columns.max()]
    height, width = window.shape[0], window.shape[1] + 1  # a crossing may lie right of the last centre
    toggles = np.zeros(height * width, dtype=np.uint8)
    np.add.at(toggles, (rows - top) * width + np.minimum(columns - left, width - 1), 1)
    parity = np.add.accumulate(toggles.reshape(height, width), axis=1, dtype=np.uint8) & 1
    window |= parity[:, : window.shape[1]].view(np.bool_)


def _crossings(starts: np.ndarray, ends: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row, and first column whose centre lies right of the edge, for each crossing of an edge and a row: 2 x (K,)."""
    downwards = starts[:, 1:] <= ends[:, 1:]
    upper, lower = np.where(downwards, starts, ends), np.where(downwards, ends, starts)
    first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    span = lower - upper
    share = (rows + 0.5 - upper[edge, 1]) / span[edge, 1]
    x = upper[edge, 0] + share * span[edge, 0]
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    return rows, columns


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


def exact_polygons(mask_hw: np.ndarray, *, min_area_px: float = 0.0) -> list[Polygon]:
    """The crack contours of a mask (bool, H x W), one polygon for each 4-connected part, in raster order.

    Args:
        min_area_px: parts (holes filled) and holes smaller than this are left out.
    """
    rows = np.flatnonzero(mask_hw.any(axis=1))
    if not len(rows):
        return []
    columns = np.flatnonzero(mask_hw[rows[0] : rows[-1] + 1].any(axis=0))
    window = mask_hw[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    offset = np.array([columns[0], rows[0]], dtype=np.float64)
    rings = [(signed_area(ring), ring) for ring in trace_rings(window)]
    parts = [ring for area, ring in rings if area > 0 and area >= min_area_px]
    holes = [(-area, ring) for area, ring in rings if area < 0]
    owners = _owners(window, parts, [ring for _, ring in holes], len(rings) - len(holes))
    holes_of: dict[int, list[np.ndarray]] = {}
    for (area, hole), owner in zip(holes, owners, strict=True):
        if area >= min_area_px:
            holes_of.setdefault(owner, []).append(hole + offset)
    return [Polygon(ring + offset, tuple(holes_of.get(index, ()))) for index, ring in enumerate(parts)]


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
