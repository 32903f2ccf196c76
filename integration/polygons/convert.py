"""Masks to polygons that people want to edit, and back; without crumbs, which cost more to delete than they are worth.

Coordinates are continuous pixel edges: pixel [y, x] covers [x, x + 1] x [y, y + 1], as COCO and Label Studio draw them.
Contours through pixel centres (OpenCV) are half a pixel too small on every side.

What is a crumb depends on the object: a spot of 40 pixels is noise beside a fork and half of a distant button.

Shapes: H, W mask size; N vertices. Rings are as in `exact`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from integration.polygons.exact import Polygon, exact_polygons, fill_even_odd
from integration.polygons.level_set import Patch, level_set_outline
from integration.polygons.simplify import Chain, Outline, Ring, simplify_outlines

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
