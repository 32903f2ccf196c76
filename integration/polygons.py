"""Masks to polygons that people want to edit, and back.

Coordinates are continuous pixel edges: pixel [y, x] covers [x, x + 1] x [y, y + 1], as COCO and Label Studio draw them.
Contours through pixel centres (OpenCV) are half a pixel too small on every side.

Shapes: H, W mask size; N, M vertices. Rings are not closed by a repeated point; exteriors have a positive shoelace area
in (x right, y down), holes a negative one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from integration.contours import trace_rings
from integration.keyhole import cut_open
from integration.rasterise import fill_even_odd
from integration.simplify import Chain, Outline, Ring, settle, signed_area

_FIRST_TOLERANCE_PX = 0.25  # where the search for a vertex budget starts
_TOLERANCE_PRECISION = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One connected area.

    Attributes:
        exterior: float64 (N, 2), x and y in pixel edges.
        holes: float64 (M, 2) each.
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


def mask_to_polygons(
    mask_hw: np.ndarray,
    *,
    tolerance_px: float = 0.0,
    max_vertices: int | None = None,
    min_area_px: float = 0.0,
) -> list[Polygon]:
    """Outline a mask, one polygon for each 4-connected part.

    Args:
        mask_hw: bool, H x W.
        tolerance_px: largest two-way Hausdorff distance between a ring and its exact contour. 0 keeps every corner, and
            `polygons_to_mask` then gives back the identical mask.
        max_vertices: most vertices of a polygon, all its rings together; the tolerance is raised just enough and
            recorded in the polygon. Validity goes first: a polygon keeps three vertices a ring, and more where parts
            of the mask would overlap otherwise.
        min_area_px: parts (with their holes filled) and holes smaller than this many pixels are left out. Nothing is
            left out at 0.

    Returns:
        Valid polygons, in raster order of their first pixel.

    Raises:
        ValueError: the mask is not bool H x W, or a number is out of range.
    """
    check_arguments(mask_hw, tolerance_px, max_vertices, min_area_px)
    polygons = exact_polygons(mask_hw, min_area_px=min_area_px)
    if max_vertices is not None:
        tolerances = [_least_tolerance(polygon, tolerance_px, max_vertices) for polygon in polygons]
    else:
        tolerances = [tolerance_px] * len(polygons)
    return _simplified(polygons, tolerances)


def polygons_to_mask(polygons: Iterable[Polygon], height: int, width: int) -> np.ndarray:
    """Fill polygons on the pixel grid: a pixel is inside when its centre is.

    Args:
        polygons: in pixel edges; parts outside the image are clipped, overlapping polygons are united.
        height: H of the mask.
        width: W of the mask.

    Returns:
        Bool, H x W.
    """
    mask_hw = np.zeros((height, width), dtype=np.bool_)
    for polygon in polygons:
        fill_even_odd([polygon.exterior, *polygon.holes], mask_hw)
    return mask_hw


def keyhole(polygon: Polygon) -> np.ndarray:
    """One ring (N, 2) for a polygon with holes: each hole is joined by a cut that encloses nothing."""
    return cut_open(polygon.exterior, polygon.holes)


def exact_polygons(mask_hw: np.ndarray, *, min_area_px: float = 0.0) -> list[Polygon]:
    """The crack contours of a mask, holes sorted to their parts; see `mask_to_polygons`."""
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if not len(rows):
        return []
    window = mask_hw[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    offset = np.array([columns[0], rows[0]], dtype=np.float64)
    rings = [(signed_area(ring), ring) for ring in trace_rings(window)]
    exteriors = [ring for area, ring in rings if area > 0 and area >= min_area_px]
    holes = [ring for area, ring in rings if area < 0 and -area >= min_area_px]
    holes_of: dict[int, list[np.ndarray]] = {}
    for hole, owner in zip(holes, _owners(window, exteriors, holes), strict=True):
        holes_of.setdefault(owner, []).append(hole + offset)
    return [Polygon(ring + offset, tuple(holes_of.get(index, ()))) for index, ring in enumerate(exteriors)]


def _owners(window: np.ndarray, exteriors: list[np.ndarray], holes: list[np.ndarray]) -> list[int]:
    """For each hole, the exterior around it; -1 when that was too small to keep."""
    if len(exteriors) == 1 or not holes:
        return [0] * len(holes)
    labels, _ = ndimage.label(window)  # 4-connected, as the rings are
    part_of = {int(labels[_pixel_beside(ring)]): index for index, ring in enumerate(exteriors)}
    return [part_of.get(int(labels[_pixel_beside(hole)]), -1) for hole in holes]


def _pixel_beside(ring: np.ndarray) -> tuple[int, int]:
    """Row and column of a mask pixel at the first edge of a ring, which has the mask on its right-hand side."""
    (x, y), (next_x, next_y) = ring[0], ring[1]
    if y == next_y:
        return (int(y), int(x)) if next_x > x else (int(y) - 1, int(x) - 1)
    return (int(y), int(x) - 1) if next_y > y else (int(y) - 1, int(x))


def _simplified(polygons: list[Polygon], tolerances_px: list[float]) -> list[Polygon]:
    if not any(tolerances_px):
        return polygons
    outline = Outline([_rings(polygon, e) for polygon, e in zip(polygons, tolerances_px, strict=True)])
    settle([outline])
    return [
        Polygon(part[0], tuple(part[1:]), tolerance)
        for part, tolerance in zip(outline.points_px(), tolerances_px, strict=True)
    ]


def _rings(polygon: Polygon, tolerance_px: float) -> list[Ring]:
    exterior = Ring(((Chain(polygon.exterior, tolerance_px, closed=True), True),), is_hole=False)
    holes = [Ring(((Chain(hole, tolerance_px, closed=True), True),), is_hole=True) for hole in polygon.holes]
    return [exterior, *holes]


def _least_tolerance(polygon: Polygon, tolerance_px: float, max_vertices: int) -> float:
    """The least tolerance from `tolerance_px` on that meets the budget, found to within one percent."""

    def fits(tolerance: float) -> bool:
        return _simplified([polygon], [tolerance])[0].vertex_count <= max_vertices

    if fits(tolerance_px):
        return tolerance_px
    too_small, enough = tolerance_px, max(tolerance_px, _FIRST_TOLERANCE_PX)
    largest = float(np.ptp(polygon.exterior, axis=0).max())  # everything is within that of everything
    while not fits(enough):
        if enough >= largest:
            return too_small  # a triangle for each ring, or as close as a valid polygon comes
        too_small, enough = enough, enough * 1.6
    while enough - too_small > _TOLERANCE_PRECISION * enough:
        middle = (too_small + enough) / 2
        too_small, enough = (too_small, middle) if fits(middle) else (middle, enough)
    return enough


def check_arguments(
    mask_hw: np.ndarray, tolerance_px: float, max_vertices: int | None, min_area_px: float
) -> None:
    """Raise ValueError for a mask or an option that `mask_to_polygons` cannot take."""
    if mask_hw.ndim != 2 or mask_hw.dtype != np.bool_:
        raise ValueError(
            f"mask_hw must be a bool array of height x width, got {mask_hw.dtype} of shape {mask_hw.shape}; "
            "compare it with a threshold first"
        )
    if not 0 <= tolerance_px < float("inf"):
        raise ValueError(f"tolerance_px must be a finite number of pixels >= 0, got {tolerance_px}")
    if not 0 <= min_area_px < float("inf"):
        raise ValueError(f"min_area_px must be a finite number of pixels >= 0, got {min_area_px}")
    if max_vertices is not None and max_vertices < 3:
        raise ValueError(f"max_vertices must be at least 3, as a triangle has; got {max_vertices}")
