"""How far two masks' outlines are apart, and where.

Outlines run along pixel edges; they are compared at the corners of pixels, so that a mask that touches the border of
the image has an outline there, and a shift by one pixel is a distance of one.

Shapes: H, W mask size; a corner map is H + 1 x W + 1; N points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from model.instance import box_of, window_of

Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True, eq=False)
class OutlineDistance:
    """Two outlines compared within a window of the image.

    Attributes:
        window: rows and columns of the image that hold both masks and a margin.
        here: corner map of the first outline; there: of the second.
        to_here_px: distance of each corner from the first outline; to_there_px: from the second.
    """

    window: Window
    here: np.ndarray
    there: np.ndarray
    to_here_px: np.ndarray
    to_there_px: np.ndarray

    @property
    def mean_px(self) -> float:
        """Mean distance of either outline's corners from the other outline, the two means averaged."""
        return float((self.to_there_px[self.here].mean() + self.to_here_px[self.there].mean()) / 2)

    @property
    def max_px(self) -> float:
        """Largest distance from either outline to the other (Hausdorff)."""
        return float(max(self.to_there_px[self.here].max(), self.to_here_px[self.there].max()))

    def far_points(self, points_px: np.ndarray, *, of_here: bool, accepted_px: float) -> int:
        """How many of N points (x, y in pixel edges), of the first or the second outline, are off the other one."""
        distances_px = self.to_there_px if of_here else self.to_here_px
        rows, columns = self.window
        corners = np.rint(np.asarray(points_px) - [columns.start, rows.start]).astype(np.int64)
        y = corners[:, 1].clip(0, distances_px.shape[0] - 1)
        x = corners[:, 0].clip(0, distances_px.shape[1] - 1)
        return int(np.count_nonzero(distances_px[y, x] > accepted_px))


def compare_outlines(mask_hw: np.ndarray, other_hw: np.ndarray, *, margin_px: int = 8) -> OutlineDistance:
    """Compare two bool H x W masks of one image.

    Raises:
        ValueError: a mask is empty, or the sizes differ.
    """
    if mask_hw.shape != other_hw.shape or not mask_hw.any() or not other_hw.any():
        areas = int(mask_hw.sum()), int(other_hw.sum())
        raise ValueError(
            f"masks of {mask_hw.shape} and {other_hw.shape} with {areas} pixels have no outlines to compare; "
            "expected two masks of one size with at least a pixel each"
        )
    window = window_of(mask_hw | other_hw, margin_px)
    here, there = outline_corners(mask_hw[window]), outline_corners(other_hw[window])
    to_here, to_there = (ndimage.distance_transform_edt(~outline) for outline in (here, there))
    return OutlineDistance(window, here, there, to_here, to_there)


def moved_band(
    mask_hw: np.ndarray, other_hw: np.ndarray, compared: OutlineDistance, *, accepted_px: float, band_px: float
) -> np.ndarray:
    """Where an outline was moved, bool H x W.

    All pixels within `band_px` of a stretch of either outline that is farther than `accepted_px` from the other one,
    and the pixels that changed sides there.
    """
    off = (compared.here & (compared.to_there_px > accepted_px)) | (
        compared.there & (compared.to_here_px > accepted_px)
    )
    band_hw = np.zeros_like(mask_hw)
    if not off.any():
        return band_hw
    near = _touched(ndimage.distance_transform_edt(~off) <= band_px)
    changed = mask_hw[compared.window] ^ other_hw[compared.window]
    pieces, _ = ndimage.label(changed, np.ones((3, 3)))
    there = np.unique(pieces[_touched(off)])
    band_hw[compared.window] = near | (changed & np.isin(pieces, there[there > 0]))
    return band_hw


def outline_length(mask_hw: np.ndarray) -> int:
    """Corners of pixels that the outline of a mask passes, about its length in pixels; 0 for an empty mask."""
    if not mask_hw.any():
        return 0
    left, top, right, bottom = box_of(mask_hw)
    return int(np.count_nonzero(outline_corners(mask_hw[top:bottom, left:right])))


def outline_corners(mask_hw: np.ndarray) -> np.ndarray:
    """Find corners of pixels that the outline passes, bool (H + 1, W + 1): the four pixels around them differ.

    Outside of the mask is empty.
    """
    padded = np.pad(mask_hw, 1)
    here, right, below, across = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    result: np.ndarray = (here | right | below | across) & ~(here & right & below & across)
    return result


def _touched(corners: np.ndarray) -> np.ndarray:
    """Pixels (H x W) with one of these corners (H + 1 x W + 1)."""
    result: np.ndarray = corners[:-1, :-1] | corners[:-1, 1:] | corners[1:, :-1] | corners[1:, 1:]
    return result
