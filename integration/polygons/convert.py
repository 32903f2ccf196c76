"""Masks to polygons that people edit, and back; without crumbs, small parts and holes that only cost clicks to delete.

Coordinates are continuous pixel edges: pixel [y, x] covers [x, x + 1] x [y, y + 1], as COCO and Label Studio draw them.
Contours through pixel centres (OpenCV) are half a pixel too small on every side.

What is a crumb depends on the object: a spot of 40 pixels is noise beside a fork and half of a distant button.

Several masks of one image can be outlined at once, so that instances that touch keep one shared edge: no overlap, no
gap. The cracks between differently labelled pixels are cut where three or more of them meet; the chains between those
junctions are simplified once each and used by the masks on both sides.

Shapes: H, W mask size; N vertices or corners of a ring. Rings are as in `contours`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np
from scipy import ndimage

from integration.polygons.contours import Patch, Polygon, exact_polygons, fill_even_odd, level_set_outline, unit_edges
from integration.polygons.simplify import Chain, Outline, Ring, simplify_outlines
from model.instance import box_of

_SIDES_AND_CORNERS = np.ones((3, 3), dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class CrumbRule:
    """What is too small to keep: below a number of pixels, or below a share of the object's area.

    Attributes:
        part_px: least pixels of a part. part_share: least area of a part / area of the largest one.
        hole_px: least pixels of a hole. hole_share: least area of a hole / area of the object.
    """

    part_px: float = 16.0
    part_share: float = 0.0
    hole_px: float = 16.0
    hole_share: float = 0.0


def remove_crumbs(mask_hw: np.ndarray, rule: CrumbRule) -> np.ndarray:
    """Apply a rule to a mask (bool, H x W): parts first, then holes of what is left.

    Parts that touch with a corner count as one; holes are connected by sides. Empty when even the largest part is
    smaller than `part_px`.
    """
    labels, _ = ndimage.label(mask_hw, _SIDES_AND_CORNERS)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    parts_hw: np.ndarray = (areas >= max(rule.part_px, rule.part_share * areas.max(), 1))[labels]
    background, _ = ndimage.label(~np.pad(parts_hw, 1))
    areas = np.bincount(background.ravel())
    is_small = areas < max(rule.hole_px, rule.hole_share * np.count_nonzero(parts_hw))
    is_small[[0, background[0, 0]]] = False  # the mask itself, and the outside
    return parts_hw | is_small[background[1:-1, 1:-1]]


def reach_border(mask_hw: np.ndarray, border_px: int) -> np.ndarray:
    """Let a mask (bool, H x W) that comes as close as `border_px` to the image's border go on to it.

    Networks see little of the border's last pixels, and boxes end before it.
    """
    if not border_px or min(mask_hw.shape) <= 2 * border_px:
        return mask_hw
    reached_hw = mask_hw.copy()
    for side in (reached_hw, reached_hw[::-1], reached_hw.T, reached_hw.T[::-1]):
        side[:border_px] |= side[border_px]
    return reached_hw


_FIRST_TOLERANCE_PX = 0.25  # where the search for a vertex budget starts
_TOLERANCE_PRECISION = 0.01


def outline_mask(
    mask_hw: np.ndarray, *, tolerance_px: float = 0.0, max_vertices: int | None = None, min_area_px: float = 0.0
) -> list[Polygon]:
    """Outline a mask along the edges of its pixels, one polygon for each 4-connected part.

    Args:
        tolerance_px: largest two-way Hausdorff distance between a ring and its exact contour. 0 keeps every corner, and
            `polygons_to_mask` then gives back the identical mask.
        max_vertices: most vertices of a polygon, all its rings together; the tolerance is raised just enough and
            recorded in the polygon. Validity goes first: a polygon keeps three vertices a ring, and more where parts
            of the mask would overlap otherwise.
        min_area_px: parts (with their holes filled) and holes smaller than this many pixels are left out. Nothing is
            left out at 0.
    """
    polygons = exact_polygons(mask_hw, min_area_px=min_area_px)
    tolerances = [tolerance_px] * len(polygons)
    if max_vertices is not None:
        tolerances = [_least_tolerance([polygon], tolerance_px, max_vertices) for polygon in polygons]
    return _simplify(polygons, tolerances)


def smooth_outline(
    mask_hw: np.ndarray,
    patch: Patch | None = None,
    *,
    tolerance_px: float = 0.0,
    max_vertices: int | None = None,
    min_area_px: float = 0.0,
    border_px: int = 0,
) -> list[Polygon]:
    """Outline a mask along the level set of its probabilities.

    Args:
        mask_hw: bool, H x W. At tolerance 0, `polygons_to_mask` gives it back exactly.
        patch: its probabilities and their box; see `level_set_outline`, also for `border_px`.
        max_vertices: most vertices of all polygons together, cuts between them included.

    Returns:
        Valid polygons. Vertices lie where the segments fit the level set best.
    """
    polygons = level_set_outline(mask_hw, patch, min_area_px=min_area_px, border_px=border_px)
    size_px = float(mask_hw.shape[1]), float(mask_hw.shape[0])
    if max_vertices is not None and polygons:
        tolerance_px = _least_tolerance(polygons, tolerance_px, max_vertices, fit_in_px=size_px)
    return _simplify(polygons, [tolerance_px] * len(polygons), fit_in_px=size_px)


def polygons_to_mask(polygons: Iterable[Polygon], height: int, width: int) -> np.ndarray:
    """Fill polygons on the pixel grid: a pixel is inside when its centre is.

    Args:
        polygons: in pixel edges; parts outside the image are clipped, overlapping polygons are united.
    """
    mask_hw = np.zeros((height, width), dtype=np.bool_)
    for polygon in polygons:
        fill_even_odd([polygon.exterior, *polygon.holes], mask_hw)
    return mask_hw


def _simplify(
    polygons: list[Polygon], tolerances_px: list[float], *, fit_in_px: tuple[float, float] | None = None
) -> list[Polygon]:
    if not any(tolerances_px):
        return polygons
    outline = Outline([_rings(polygon, e, fit_in_px) for polygon, e in zip(polygons, tolerances_px, strict=True)])
    simplify_outlines([outline])
    return [
        Polygon(rings[0], tuple(rings[1:]), tolerance)
        for rings, tolerance in zip(outline.points_px(), tolerances_px, strict=True)
    ]


def _rings(polygon: Polygon, tolerance_px: float, fit_in_px: tuple[float, float] | None) -> list[Ring]:
    chains = [
        Chain(ring, tolerance_px, closed=True, fit_in_px=fit_in_px) for ring in (polygon.exterior, *polygon.holes)
    ]
    return [Ring(((chain, True),), is_hole=number > 0) for number, chain in enumerate(chains)]


def _least_tolerance(
    polygons: list[Polygon], tolerance_px: float, max_vertices: int, *, fit_in_px: tuple[float, float] | None = None
) -> float:
    """The least tolerance from `tolerance_px` on that meets the budget, found to within one percent."""
    cuts = 2 * (len(polygons) - 1)

    def fits(tolerance: float) -> bool:
        simplified = _simplify(polygons, [tolerance] * len(polygons), fit_in_px=fit_in_px)
        return sum(polygon.vertex_count for polygon in simplified) + cuts <= max_vertices

    if fits(tolerance_px):
        return tolerance_px
    low, high = tolerance_px, max(tolerance_px, _FIRST_TOLERANCE_PX)
    # A tolerance of the largest extent allows everything.
    largest = max(float(np.ptp(polygon.exterior, axis=0).max()) for polygon in polygons)
    while not fits(high):
        if high >= largest:
            return low  # a triangle for each ring, or as close as a valid polygon comes
        low, high = high, high * 1.6
    while high - low > _TOLERANCE_PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


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
    windows, offset_px = _crop(masks_hw)
    labels, disjoint = _label_sets(windows)
    pieces = _Pieces(_junctions(labels), tolerance_px)
    exact = [exact_polygons(window, min_area_px=min_area_px) for window in windows]
    outlines = [Outline([pieces.rings(polygon) for polygon in polygons]) for polygons in exact]
    simplify_outlines(outlines, disjoint=disjoint)
    return [
        [
            Polygon(rings[0] + offset_px, tuple(hole + offset_px for hole in rings[1:]), tolerance_px)
            for rings in outline.points_px()
        ]
        for outline in outlines
    ]


def _crop(masks_hw: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """The masks within the box around them all, and its left top corner (x, y)."""
    left, top, right, bottom = box_of(reduce(np.logical_or, masks_hw))
    return [mask_hw[top:bottom, left:right] for mask_hw in masks_hw], np.array([left, top], dtype=np.float64)


def _label_sets(masks_hw: Sequence[np.ndarray]) -> tuple[np.ndarray, bool]:
    """A label (H, W) for each pixel's set of masks, 0 for none; and whether no pixel is in two masks."""
    labels = np.zeros(masks_hw[0].shape, dtype=np.uint64)
    disjoint = True
    for number, mask_hw in enumerate(masks_hw, start=1):
        earlier_labels = labels[mask_hw]
        disjoint = disjoint and not earlier_labels.any()
        labels[mask_hw] = (earlier_labels + np.uint64(number)) * _MIX
    return labels, disjoint


def _junctions(labels: np.ndarray) -> np.ndarray:
    """Lattice points (H + 1, W + 1) where three or four cracks meet."""
    padded_labels = np.pad(labels, 1)
    column_cracks = (padded_labels[:, 1:] != padded_labels[:, :-1]).astype(np.uint8)  # cracks between columns
    row_cracks = (padded_labels[1:] != padded_labels[:-1]).astype(np.uint8)
    return column_cracks[:-1] + column_cracks[1:] + row_cracks[:, :-1] + row_cracks[:, 1:] >= 3


class _Pieces:
    """The chains made so far, each once, for the masks on both sides."""

    def __init__(self, junctions: np.ndarray, tolerance_px: float) -> None:
        self._junctions, self._tolerance_px = junctions, tolerance_px
        self._chains: dict[bytes, Chain] = {}

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
        lattice, step = unit_edges(corners)
        is_junction = self._junctions[lattice[:, 1], lattice[:, 0]]
        is_corner = is_junction | (step != np.roll(step, 1, axis=0)).any(axis=1)
        return lattice[is_corner], is_junction[is_corner]

    def _chain(self, points: np.ndarray, *, closed: bool) -> tuple[Chain, bool]:
        """The chain of these corners and whether it runs the same way."""
        backwards = np.concatenate([points[:1], points[:0:-1]]) if closed else points[::-1]
        forward = points.tobytes() <= backwards.tobytes()
        corners = points if forward else backwards
        chain = self._chains.get(key := corners.tobytes())
        if chain is None:
            chain = self._chains[key] = Chain(corners, self._tolerance_px, closed=closed)
        return chain, forward


def _from_least(points: np.ndarray) -> np.ndarray:
    """The ring, started at its least corner, so that the masks on both sides find the same chain."""
    return np.roll(points, -int(np.lexsort((points[:, 1], points[:, 0]))[0]), axis=0)
