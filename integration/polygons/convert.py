"""Masks to polygons that people want to edit, and back; without crumbs, which cost more to delete than they are worth.

Coordinates are continuous pixel edges: pixel [y, x] covers [x, x + 1] x [y, y + 1], as COCO and Label Studio draw them.
Contours through pixel centres (OpenCV) are half a pixel too small on every side.

The crack contour of a mask (`exact`) is a staircase. A smooth outline follows a probability map: every edge of a pixel
on the contour, which lies between the centre of a pixel inside and of one outside, becomes the point between those
centres where the probability passes one half (marching squares; Lorensen and Cline 1987). The mask alone decides which
centres are inside, so `polygons_to_mask` gives it back whatever the probabilities are.

What is a crumb depends on the object: a spot of 40 pixels is noise beside a fork and half of a distant button.

Shapes: H, W mask size; h, w patch size; N corners or vertices of a ring; E unit edges. Rings are as in `exact`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from integration.polygons.exact import Polygon, exact_polygons, fill_even_odd
from integration.polygons.simplify import Chain, Outline, Ring, simplify_outlines
from model.instance import box_of, sample_patch

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
    exact = exact_polygons(mask_hw, min_area_px=min_area_px)
    if not exact:
        return []
    margins = _Margins(mask_hw, patch, border_px)
    return [
        Polygon(margins.level_ring(polygon.exterior), tuple(map(margins.level_ring, polygon.holes)))
        for polygon in exact
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
        begin, step = _unit_edges(corners.astype(np.int64))
        # The mask is on the right-hand side as seen on the screen: of (dx, dy) that is (-dy, dx).
        inwards = np.stack([-step[:, 1], step[:, 0]], axis=1)
        middle = begin + step / 2
        inside, outside = (np.floor(middle + side * inwards / 2).astype(np.int64) for side in (1, -1))
        is_border = ((outside < 0) | (outside >= self._shape_hw[::-1])).any(axis=1)
        above, below = self._margin(inside, 1), self._margin(outside, -1)
        points = inside + 0.5 - inwards * (above / (above + below))[:, None]
        points[is_border] = middle[is_border]
        return _without_straight_runs(_with_border_turns(points, inwards, is_border))

    def _margin(self, pixels: np.ndarray, sign: int) -> np.ndarray:
        """Of pixels (E, 2) that are inside (`sign` 1) or outside (-1), at least the least one."""
        x, y = (pixels - self._origin).T
        height, width = self._margins.shape
        return np.maximum(sign * self._margins[y.clip(0, height - 1), x.clip(0, width - 1)], _LEAST_MARGIN)


def _unit_edges(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begin and step of each edge of a pixel along a ring: 2 x (E, 2)."""
    step = np.roll(corners, -1, axis=0) - corners
    length = np.abs(step).sum(axis=1)
    edge = np.repeat(np.arange(len(corners)), length)
    along = np.arange(len(edge)) - np.repeat(np.cumsum(length) - length, length)
    unit = np.sign(step)[edge]
    return corners[edge] + along[:, None] * unit, unit


def _with_border_turns(points: np.ndarray, inwards: np.ndarray, is_border: np.ndarray) -> np.ndarray:
    """With the corners of the image, and a foot on its border where the outline leaves it."""
    if not is_border.any():
        return points
    after = np.roll(np.arange(len(points)), -1)
    turns = (inwards != inwards[after]).any(axis=1)
    is_corner = is_border & is_border[after] & turns
    leaves, arrives = is_border & ~is_border[after], ~is_border & is_border[after]
    extra = np.empty_like(points)
    # Of the point on the border, the coordinate across it; of the other one, the coordinate along it.
    for chosen, border, other in ((is_corner | leaves, points, points[after]), (arrives, points[after], points)):
        across = inwards if border is points else inwards[after]
        extra[chosen] = np.where(across != 0, border, other)[chosen]
    is_extra = is_corner | leaves | arrives
    rows = np.repeat(np.arange(len(points)), 1 + is_extra)
    result = points[rows]
    result[np.flatnonzero(np.diff(rows, prepend=-1) == 0)] = extra[is_extra]
    return np.asarray(result)


def _without_straight_runs(ring: np.ndarray) -> np.ndarray:
    """Without repeated points, and points in the middle of a run along the image's border or between equal pixels."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return ring[(cross != 0) | ((before * after).sum(axis=1) < 0)]


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
    kept_hw: np.ndarray = (areas >= max(rule.part_px, rule.part_share * areas.max(), 1))[labels]
    background, _ = ndimage.label(~np.pad(kept_hw, 1))
    areas = np.bincount(background.ravel())
    is_small = areas < max(rule.hole_px, rule.hole_share * np.count_nonzero(kept_hw))
    is_small[[0, background[0, 0]]] = False  # the mask itself, and the outside
    return kept_hw | is_small[background[1:-1, 1:-1]]


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
    return _simplified(polygons, tolerances)


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
    return _simplified(polygons, [tolerance_px] * len(polygons), fit_in_px=size_px)


def polygons_to_mask(polygons: Iterable[Polygon], height: int, width: int) -> np.ndarray:
    """Fill polygons on the pixel grid: a pixel is inside when its centre is.

    Args:
        polygons: in pixel edges; parts outside the image are clipped, overlapping polygons are united.
    """
    mask_hw = np.zeros((height, width), dtype=np.bool_)
    for polygon in polygons:
        fill_even_odd([polygon.exterior, *polygon.holes], mask_hw)
    return mask_hw


def _simplified(
    polygons: list[Polygon], tolerances_px: list[float], *, fit_in_px: tuple[float, float] | None = None
) -> list[Polygon]:
    if not any(tolerances_px):
        return polygons
    outline = Outline([_rings(polygon, e, fit_in_px) for polygon, e in zip(polygons, tolerances_px, strict=True)])
    simplify_outlines([outline])
    return [
        Polygon(part[0], tuple(part[1:]), tolerance)
        for part, tolerance in zip(outline.points_px(), tolerances_px, strict=True)
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
        simplified = _simplified(polygons, [tolerance] * len(polygons), fit_in_px=fit_in_px)
        return sum(polygon.vertex_count for polygon in simplified) + cuts <= max_vertices

    if fits(tolerance_px):
        return tolerance_px
    too_small, enough = tolerance_px, max(tolerance_px, _FIRST_TOLERANCE_PX)
    # Everything is within that of everything.
    largest = max(float(np.ptp(polygon.exterior, axis=0).max()) for polygon in polygons)
    while not fits(enough):
        if enough >= largest:
            return too_small  # a triangle for each ring, or as close as a valid polygon comes
        too_small, enough = enough, enough * 1.6
    while enough - too_small > _TOLERANCE_PRECISION * enough:
        middle = (too_small + enough) / 2
        too_small, enough = (too_small, middle) if fits(middle) else (middle, enough)
    return enough
