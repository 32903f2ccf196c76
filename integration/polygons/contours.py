"""Outlines of a mask that fill to exactly that mask: along the edges of its pixels, or between their centres.

The crack contour runs along the edges between pixels, on the pixel lattice, and is a staircase. In the level set every
such edge, which lies between the centre of a pixel inside and of one outside, becomes the point between those centres
where the probability passes one half (marching squares; Lorensen and Cline 1987). The mask alone decides which centres
are inside, so `polygons_to_mask` gives it back whatever the probabilities are.

Shapes: H, W mask size; h, w patch size; N corners of a ring; E edges; K crossings of edges with pixel rows. A lattice
point (x, y) is the top left corner of pixel [y, x], so a pixel covers [x, x + 1] x [y, y + 1]. Rings hold corners only
(no collinear points) and are not closed by a repeated point. Outer rings have a positive shoelace area in (x right, y
down), rings of holes a negative one. A pixel is inside rings when its centre is, by the even-odd rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from integration.polygons.simplify import signed_area
from model.instance import box_of, sample_patch


def trace_rings(mask_hw: np.ndarray) -> list[np.ndarray]:
    """Trace every boundary of a mask.

    Returns:
        Int64 arrays (N, 2) of (x, y) corners. Each ring is simple: where pixels touch only diagonally, rings share a
        point but none passes through it twice, so a ring is the boundary between two 4-connected areas.
    """
    edges = _VerticalEdges(mask_hw)
    following, pinches = edges.following()
    walk, starts = _cycles(following)
    points = edges.corners(np.array(walk, dtype=np.int64))
    corners_xy = np.stack([points % edges.stride, points // edges.stride], axis=1)
    rings = [corners_xy[2 * a : 2 * b] for a, b in pairwise(starts)]
    if not len(pinches):
        return rings
    visits = np.flatnonzero(np.isin(points, pinches))
    visits_by_ring = np.split(visits, np.searchsorted(visits, 2 * np.array(starts[1:-1])))
    return [
        part
        for ring, start, ring_visits in zip(rings, starts, visits_by_ring, strict=False)
        for part in _split_where_pinched(ring, (ring_visits - 2 * start).tolist())
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
        padded_hw = np.zeros((height + 2, self.stride), dtype=np.bool_)
        padded_hw[1:-1, 1:-1] = mask_hw
        pixels = padded_hw.ravel()
        is_crack = pixels[1:] ^ pixels[:-1]
        crack = np.flatnonzero(is_crack)  # between this pixel and the one to its right
        mask_is_left = pixels[crack]  # whether the mask is on the left
        starts = ~is_crack[crack - self.stride] | (mask_is_left ^ pixels[crack - self.stride])
        ends = ~is_crack[crack + self.stride] | (mask_is_left ^ pixels[crack + self.stride])
        # Lattice points as numbers: rows and columns of the padded pixel up and left of them.
        upper, lower = crack[starts] - self.stride, crack[ends]
        self._upper, self._downwards = upper, mask_is_left[starts]
        by_column = _stable_order(upper % self.stride)
        self._end_below = np.empty(len(upper), dtype=np.int64)  # of each edge, its lower end
        self._end_below[by_column] = _stable_order(lower % self.stride)
        self._edge_above = np.empty_like(self._end_below)  # and the other way round
        self._edge_above[self._end_below] = np.arange(len(upper))
        self._lower = lower

    def following(self) -> tuple[list[int], np.ndarray]:
        """The edge that follows each edge, with the mask on its right as seen on screen; and where corners meet."""
        count = len(self._upper)
        points = np.concatenate([self._upper, self._lower])
        # Of two at one point, the one with the mask on its left ends the horizontal edge from the left: so rings go
        # around areas that are connected by sides.
        second = np.concatenate([~self._downwards, ~self._downwards[self._edge_above]])
        order = np.argsort(points * 2 + second, kind="stable")  # two sorted runs: merged in one pass
        first_ends, last_ends = order[0::2], order[1::2]
        across = np.empty(2 * count, dtype=np.int64)
        across[first_ends], across[last_ends] = last_ends, first_ends
        leaving_ends = np.where(self._downwards, self._end_below + count, np.arange(count))
        entered_ends = across[leaving_ends]
        self._horizontal = np.stack([points[leaving_ends], points[entered_ends]], axis=1)
        successors = np.where(entered_ends < count, entered_ends, self._edge_above[entered_ends - count])
        in_order = points[order]
        return successors.tolist(), in_order[1:][in_order[1:] == in_order[:-1]]

    def corners(self, edges: np.ndarray) -> np.ndarray:
        """The corners (N,) after each of these edges and before the next, as numbers: y * stride + x."""
        return self._horizontal[edges].ravel()


def _stable_order(columns: np.ndarray) -> np.ndarray:
    """Stable order of small numbers; 16 bits are sorted by radix."""
    small = len(columns) and columns.max() < 1 << 16
    return np.argsort(columns.astype(np.uint16) if small else columns, kind="stable")


def _cycles(following: list[int]) -> tuple[list[int], list[int]]:
    """All edges, cycle by cycle, and where each cycle begins; the last number is the end."""
    is_visited = bytearray(len(following))
    walk: list[int] = []
    starts = [0]
    start = 0
    while (start := is_visited.find(0, start)) >= 0:
        node = start
        while not is_visited[node]:
            is_visited[node] = 1
            walk.append(node)
            node = following[node]
        starts.append(len(walk))
    return walk, starts


def _split_where_pinched(ring: np.ndarray, visits: list[int]) -> list[np.ndarray]:
    """Cut a ring wherever it comes back to a point, so that no ring touches itself (OGC validity).

    Args:
        visits: the corners at points that some ring passes twice, ascending.
    """
    points = list(map(tuple, ring[visits].tolist()))
    if len(set(points)) == len(points):
        return [ring]
    rings = []
    # The pieces since each open visit; the first are those before all visits.
    stretches = [[ring[: visits[0]]]]
    open_points: list[tuple[int, ...] | None] = [None]
    for point, start, end in zip(points, visits, [*visits[1:], len(ring)], strict=True):
        if point in open_points:
            index = open_points.index(point)
            rings.append(np.concatenate([piece for pieces in stretches[index:] for piece in pieces]))
            del open_points[index:], stretches[index:]
        open_points.append(point)
        stretches.append([ring[start:end]])
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
    first_rows = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
    last_rows = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64)
    counts = last_rows - first_rows
    edge = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first_rows[edge]
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
    left, top, right, bottom = box_of(mask_hw)
    if left == right:
        return []
    window = mask_hw[top:bottom, left:right]
    offset = np.array([left, top], dtype=np.float64)
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


Box = tuple[float, float, float, float]
#: Probabilities (h, w) and the box that they cover.
Patch = tuple[np.ndarray, Box]

LEVEL = 0.5
#: Probabilities count as at least this far from the level, so that outlines keep clear of pixel centres.
_LEAST_MARGIN = 0.02
_BLUR_PX = 1.0


def level_set_outline(
    mask_hw: np.ndarray, patch: Patch | None = None, *, min_area_px: float = 0.0, border_px: int = 0
) -> list[Polygon]:
    """Outline a mask along the level set of a probability map.

    Args:
        mask_hw: bool, H x W: which pixel centres are inside.
        patch: probabilities (see `sample_patch`) and their box. Where they contradict the mask, the mask wins. None:
            the mask itself, blurred by a pixel, which takes the steps off its edges.
        min_area_px: parts and holes smaller than this are left out.
        border_px: probabilities this close to the image's border are not used; those farther inside count there.

    Returns:
        One polygon for each 4-connected part; `polygons_to_mask` gives back the mask when nothing was left out.
        Outlines of objects that touch the image's border reach it, at a right angle.
    """
    polygons = exact_polygons(mask_hw, min_area_px=min_area_px)
    if not polygons:
        return []
    margins = _Margins(mask_hw, patch, border_px)
    return [
        Polygon(margins.level_ring(polygon.exterior), tuple(map(margins.level_ring, polygon.holes)))
        for polygon in polygons
    ]


class _Margins:
    """How far pixels are from the level, in the box around a mask and one pixel more."""

    def __init__(self, mask_hw: np.ndarray, patch: Patch | None, border_px: int) -> None:
        self._shape_hw = mask_hw.shape
        left, top, right, bottom = box_of(mask_hw)
        self._origin = np.array([left - 1, top - 1])
        y_px, x_px = np.arange(top - 1, bottom + 1) + 0.5, np.arange(left - 1, right + 1) + 0.5
        if patch is None:
            inside = np.pad(mask_hw[top:bottom, left:right], 1).astype(np.float32)
            probability = ndimage.gaussian_filter(inside, _BLUR_PX, mode="nearest")
        else:
            y_px, x_px = (
                np.clip(at, min(border_px, length / 2), max(length - border_px, length / 2))
                for at, length in zip((y_px, x_px), mask_hw.shape, strict=True)
            )
            probability = sample_patch(patch[0], patch[1], y_px, x_px)
        self._margins = np.nan_to_num(probability, nan=LEVEL).astype(np.float64) - LEVEL

    def level_ring(self, corners: np.ndarray) -> np.ndarray:
        """The ring through the level between the centres on both sides of each unit edge of a crack contour (N, 2)."""
        start, step = unit_edges(corners.astype(np.int64))
        # The mask is on the right-hand side as seen on the screen: of (dx, dy) that is (-dy, dx).
        inwards = np.stack([-step[:, 1], step[:, 0]], axis=1)
        middle = start + step / 2
        inside, outside = (np.floor(middle + side * inwards / 2).astype(np.int64) for side in (1, -1))
        is_border = ((outside < 0) | (outside >= self._shape_hw[::-1])).any(axis=1)
        above, below = self._margin(inside, 1), self._margin(outside, -1)
        points = inside + 0.5 - inwards * (above / (above + below))[:, None]
        points[is_border] = middle[is_border]
        return _without_straight_runs(_with_border_turns(points, inwards, is_border))

    def _margin(self, pixels: np.ndarray, sign: int) -> np.ndarray:
        """How far pixels (E, 2) inside (`sign` 1) or outside (-1) are from the level, at least `_LEAST_MARGIN`."""
        x, y = (pixels - self._origin).T
        height, width = self._margins.shape
        return np.maximum(sign * self._margins[y.clip(0, height - 1), x.clip(0, width - 1)], _LEAST_MARGIN)


def unit_edges(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begin and step of each edge of a pixel along a ring: 2 x (E, 2)."""
    step = np.roll(corners, -1, axis=0) - corners
    length = np.abs(step).sum(axis=1)
    edge = np.repeat(np.arange(len(corners)), length)
    along = np.arange(len(edge)) - np.repeat(np.cumsum(length) - length, length)
    unit = np.sign(step)[edge]
    return corners[edge] + along[:, None] * unit, unit


def _with_border_turns(points: np.ndarray, inwards: np.ndarray, is_border: np.ndarray) -> np.ndarray:
    """Add the corners of the image, and a point on its border where the outline leaves it."""
    if not is_border.any():
        return points
    next_indices = np.roll(np.arange(len(points)), -1)
    next_points = points[next_indices]
    turns = (inwards != inwards[next_indices]).any(axis=1)
    is_corner = is_border & is_border[next_indices] & turns
    leaves, arrives = is_border & ~is_border[next_indices], ~is_border & is_border[next_indices]
    extra_points = np.empty_like(points)
    # Of the point on the border, the coordinate across it; of the other one, the coordinate along it.
    for mask, border, neighbour in ((is_corner | leaves, points, next_points), (arrives, next_points, points)):
        across = inwards if border is points else inwards[next_indices]
        extra_points[mask] = np.where(across != 0, border, neighbour)[mask]
    is_extra = is_corner | leaves | arrives
    rows = np.repeat(np.arange(len(points)), 1 + is_extra)
    result = points[rows]
    result[np.flatnonzero(np.diff(rows, prepend=-1) == 0)] = extra_points[is_extra]
    return np.asarray(result)


def _without_straight_runs(ring: np.ndarray) -> np.ndarray:
    """Drop repeated points, and points in the middle of a run along the image's border or between equal pixels."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    incoming_steps, outgoing_steps = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    cross = incoming_steps[:, 0] * outgoing_steps[:, 1] - incoming_steps[:, 1] * outgoing_steps[:, 0]
    return ring[(cross != 0) | ((incoming_steps * outgoing_steps).sum(axis=1) < 0)]
