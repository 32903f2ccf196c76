"""Outlines of several masks at once, so that instances that touch keep one shared edge: no overlap, no gap.

The cracks between differently labelled pixels are cut where three or more of them meet. The chains between those
junctions are simplified once each and used by the masks on both sides.

Shapes: H, W mask size; N corners of a ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from integration.polygons.exact import Polygon, exact_polygons
from integration.polygons.simplify import Chain, Outline, Ring, simplify_outlines

_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so that labels of different sets of masks differ


def outline_masks(
    masks_hw: Sequence[np.ndarray], *, tolerance_px: float = 0.0, min_area_px: float = 0.0
) -> list[list[Polygon]]:
    """Outline masks of one image; where two touch, both polygons have the same vertices along the shared edge.

    Args:
        masks_hw: bool, H x W each, of one size. Where masks overlap they do not touch, and keep their own edges.
        tolerance_px: as in `outline_mask`; junctions of three areas stay where they are.
        min_area_px: parts and holes smaller than this many pixels are left out.

    Returns:
        For each mask its polygons, as `outline_mask` returns them.
    """
    if not len(masks_hw):
        return []
    windows, offset_px = _cropped(masks_hw)
    labels, disjoint = _label_sets(windows)
    pieces = _Pieces(_junctions(labels), tolerance_px)
    exact = [exact_polygons(window, min_area_px=min_area_px) for window in windows]
    outlines = [Outline([pieces.rings(polygon) for polygon in polygons]) for polygons in exact]
    simplify_outlines(outlines, disjoint=disjoint)
    return [
        [
            Polygon(part[0] + offset_px, tuple(hole + offset_px for hole in part[1:]), tolerance_px)
            for part in outline.points_px()
        ]
        for outline in outlines
    ]


def _cropped(masks_hw: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """The masks within the box around them all, and its left top corner (x, y)."""
    any_hw = masks_hw[0].copy()
    for mask_hw in masks_hw[1:]:
        any_hw |= mask_hw
    rows, columns = np.flatnonzero(any_hw.any(axis=1)), np.flatnonzero(any_hw.any(axis=0))
    if not len(rows):
        return list(masks_hw), np.zeros(2)
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return [mask_hw[box] for mask_hw in masks_hw], np.array([columns[0], rows[0]], dtype=np.float64)


def _label_sets(masks_hw: Sequence[np.ndarray]) -> tuple[np.ndarray, bool]:
    """A label (H, W) for each pixel's set of masks, 0 for none; and whether no pixel is in two masks."""
    labels = np.zeros(masks_hw[0].shape, dtype=np.uint64)
    disjoint = True
    for number, mask_hw in enumerate(masks_hw, start=1):
        before = labels[mask_hw]
        disjoint = disjoint and not before.any()
        labels[mask_hw] = (before + np.uint64(number)) * _MIX
    return labels, disjoint


def _junctions(labels: np.ndarray) -> np.ndarray:
    """Lattice points (H + 1, W + 1) where three or four cracks meet."""
    padded = np.pad(labels, 1)
    beside = (padded[:, 1:] != padded[:, :-1]).astype(np.uint8)  # cracks between columns
    below = (padded[1:] != padded[:-1]).astype(np.uint8)
    return beside[:-1] + beside[1:] + below[:, :-1] + below[:, 1:] >= 3


class _Pieces:
    """The chains cut out so far, each once."""

    def __init__(self, junctions: np.ndarray, tolerance_px: float) -> None:
        self._junctions, self._tolerance_px = junctions, tolerance_px
        self._known: dict[bytes, Chain] = {}

    def rings(self, polygon: Polygon) -> list[Ring]:
        """The exterior and the holes of an exact polygon, as chains."""
        return [self._ring(polygon.exterior, False), *(self._ring(hole, True) for hole in polygon.holes)]

    def _ring(self, corners: np.ndarray, is_hole: bool) -> Ring:
        points, is_junction = self._with_junctions(corners.astype(np.int64))
        cuts = np.flatnonzero(is_junction)
        if not len(cuts):
            return Ring((self._chain(_from_least(points), closed=True),), is_hole)
        points = np.roll(points, -cuts[0], axis=0)
        points = np.concatenate([points, points[:1]])
        ends = [*(cuts - cuts[0]), len(points) - 1]
        pairs = pairwise(ends)
        return Ring(tuple(self._chain(points[a : b + 1], closed=False) for a, b in pairs), is_hole)

    def _with_junctions(self, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corners and the junctions on the edges between them (N, 2); which of them are junctions (N,)."""
        step = np.roll(corners, -1, axis=0) - corners
        length = np.abs(step).sum(axis=1)
        edge = np.repeat(np.arange(len(corners)), length)
        along = np.arange(len(edge)) - np.repeat(np.cumsum(length) - length, length)
        lattice = corners[edge] + along[:, None] * np.sign(step)[edge]
        is_junction = self._junctions[lattice[:, 1], lattice[:, 0]]
        keep = is_junction | (along == 0)
        return lattice[keep], is_junction[keep]

    def _chain(self, points: np.ndarray, *, closed: bool) -> tuple[Chain, bool]:
        """The chain of these corners and whether it runs the same way."""
        backwards = np.concatenate([points[:1], points[:0:-1]]) if closed else points[::-1]
        forward = points.tobytes() <= backwards.tobytes()
        corners = points if forward else backwards
        chain = self._known.get(key := corners.tobytes())
        if chain is None:
            chain = self._known[key] = Chain(corners, self._tolerance_px, closed=closed)
        return chain, forward


def _from_least(points: np.ndarray) -> np.ndarray:
    """The ring, started at its least corner, so that both neighbours name it alike."""
    return np.roll(points, -int(np.lexsort((points[:, 1], points[:, 0]))[0]), axis=0)
