"""Outlines that follow a probability map between pixel centres, and still rasterise to exactly one mask.

The crack contour of a mask (`exact`) is a staircase. Here every edge of a pixel on it, which lies between the centre of
a pixel inside and of one outside, becomes the point between those centres where the probability passes one half
(marching squares; Lorensen and Cline 1987). The mask alone decides which centres are inside, so `polygons_to_mask`
gives it back whatever the probabilities are.

Shapes: H, W mask size; h, w patch size; N corners of a ring; E unit edges. Rings are as in `exact`.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from integration.polygons.exact import Polygon, exact_polygons
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
