"""Outlines that follow a probability map between pixel centres, and still rasterise to exactly one mask.

The crack contour of a mask (`exact`) is a staircase. Here every crossing of the outline with a line between two
neighbouring pixel centres, one inside and one outside, is put where the probability passes one half (marching squares;
Lorensen and Cline 1987). The mask alone decides which centres are inside, so `polygons_to_mask` gives it back whatever
the probabilities are.

Shapes: H, W mask size; h, w patch size; N vertices. Rings are as in `exact`.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.measure import find_contours

from integration.polygons.exact import Outlined, Polygon
from integration.polygons.simplify import signed_area

Box = tuple[float, float, float, float]
#: Probabilities (h, w) and the box that they cover.
Patch = tuple[np.ndarray, Box]

LEVEL = 0.5
#: Probabilities count as at least this far from the level, so that outlines keep clear of pixel centres.
_LEAST_MARGIN = 0.02
_BLUR_PX = 1.0


def sample_patch(values_hw: np.ndarray, box_xyxy: Box, y_px: np.ndarray, x_px: np.ndarray) -> np.ndarray:
    """Sample a patch at a grid of places, as detectron2's `paste_masks_in_image` samples it at pixel centres.

    Args:
        values_hw: float (h, w), probabilities that cover the box edge to edge.
        box_xyxy: left, top, right, bottom in pixel edges.
        y_px: (H,) of the grid's rows, in pixel edges: a pixel's centre is at a half.
        x_px: (W,) of its columns.

    Returns:
        Float32, H x W: bilinear between the centres of the patch's cells, falling to 0 outside of the box.
    """
    left, top, right, bottom = box_xyxy
    if not (right > left and bottom > top):
        return np.zeros((len(y_px), len(x_px)), dtype=np.float32)
    values_hw = np.asarray(values_hw, dtype=np.float32)
    rows = _weights(values_hw.shape[0], top, bottom, y_px)
    columns = _weights(values_hw.shape[1], left, right, x_px)
    return np.asarray(rows @ values_hw @ columns.T)


def _weights(cells: int, begin: float, end: float, at_px: np.ndarray) -> np.ndarray:
    """Bilinear weights (places, cells) of the cells of a box from `begin` to `end`."""
    at = (at_px - begin) / (end - begin) * cells - 0.5
    return np.clip(1 - np.abs(at[:, None] - np.arange(cells)), 0, 1).astype(np.float32)


def level_set_outline(
    mask_hw: np.ndarray, patch: Patch | None = None, *, min_area_px: float = 0.0, border_px: int = 0
) -> Outlined:
    """Outline a mask along the level set of a probability map.

    Args:
        mask_hw: bool, H x W: which pixel centres are inside.
        patch: probabilities (see `sample_patch`) and their box. Where they contradict the mask, the mask wins. None:
            the mask itself, blurred by a pixel, which takes the steps off its edges. At the image's border either
            counts as going on, so outlines of objects that touch the border reach it.
        min_area_px: parts and holes smaller than this are left out and counted.
        border_px: probabilities this close to the image's border are not used; those farther inside count there.

    Returns:
        One polygon for each 4-connected part; `polygons_to_mask` gives back the mask when nothing was left out.
    """
    window = _window(mask_hw)
    if window is None:
        return Outlined([])
    inside = mask_hw[window]
    probability = _probability(inside, patch, window, mask_hw.shape, border_px)
    values, x_px, y_px = _padded(_signed_margin(inside, probability), window)
    contours = [contour[:-1] for contour in find_contours(values, 0.0)]
    rings = [_without_repeats(_in_pixels(contour, x_px, y_px)) for contour in contours]
    labels, _ = ndimage.label(inside)  # 4-connected, as the contours are
    owners = [_part_inside(contour, labels) for contour in contours]
    areas = [signed_area(ring) for ring in rings]
    parts = [index for index, area in enumerate(areas) if area > 0 and area >= min_area_px and len(rings[index]) > 2]
    number_of = {owners[index]: number for number, index in enumerate(parts)}
    holes: list[list[np.ndarray]] = [[] for _ in parts]
    filled = 0
    for ring, area, owner in zip(rings, areas, owners, strict=True):
        if area < 0 and owner in number_of:
            if -area >= min_area_px:
                holes[number_of[owner]].append(ring)
            else:
                filled += 1
    order = sorted(range(len(parts)), key=lambda number: owners[parts[number]])
    polygons = [Polygon(rings[parts[number]], tuple(holes[number])) for number in order]
    return Outlined(polygons, sum(area > 0 for area in areas) - len(parts), filled)


def _window(mask_hw: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of the mask with one pixel around it, as far as the image goes; None for an empty mask."""
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if not len(rows):
        return None
    height, width = mask_hw.shape
    return (
        slice(max(int(rows[0]) - 1, 0), min(int(rows[-1]) + 2, height)),
        slice(max(int(columns[0]) - 1, 0), min(int(columns[-1]) + 2, width)),
    )


def _probability(
    inside: np.ndarray,
    patch: Patch | None,
    window: tuple[slice, slice],
    shape_hw: tuple[int, ...],
    border_px: int,
) -> np.ndarray:
    """The probability at the pixel centres of a window."""
    if patch is None:
        return np.asarray(ndimage.gaussian_filter(inside.astype(np.float32), _BLUR_PX, mode="nearest"))
    centres = [np.arange(part.start, part.stop) + 0.5 for part in window]
    y_px, x_px = (
        np.clip(at, min(border_px, length / 2), max(length - border_px, length / 2))
        for at, length in zip(centres, shape_hw, strict=True)
    )
    return sample_patch(patch[0], patch[1], y_px, x_px)


def _signed_margin(inside: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """How far each pixel is above the level: positive exactly inside."""
    margin = np.nan_to_num(np.asarray(probability, dtype=np.float64), nan=LEVEL) - LEVEL
    size = np.clip(np.where(inside, margin, -margin), _LEAST_MARGIN, 1 - LEVEL)
    return np.where(inside, size, -size)


def _padded(values: np.ndarray, window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values with two rings around them, and the x and the y of every column and row of the result.

    The inner ring continues the values up to the edge of the window's outermost pixels; the outer ring, outside, lies
    at the same place, so that an outline which leaves the image turns exactly at its border.
    """
    rows, columns = window
    padded = np.pad(np.pad(values, 1, mode="edge"), 1, constant_values=-1.0)
    y_px = _nodes(rows.start, rows.stop)
    x_px = _nodes(columns.start, columns.stop)
    return padded, x_px, y_px


def _nodes(first: int, last: int) -> np.ndarray:
    centres = np.arange(first, last) + 0.5
    return np.concatenate([[first, first], centres, [last, last]])


def _in_pixels(contour: np.ndarray, x_px: np.ndarray, y_px: np.ndarray) -> np.ndarray:
    """Contour points (row, column) in places of the padded values -> (x, y) in pixel edges."""
    y = np.interp(contour[:, 0], np.arange(len(y_px)), y_px)
    x = np.interp(contour[:, 1], np.arange(len(x_px)), x_px)
    return np.stack([x, y], axis=1)


def _without_repeats(ring: np.ndarray) -> np.ndarray:
    """Without points equal to the one before, or in the middle of a straight run along the image's border."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    if len(ring) < 4:
        return ring
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    along = (before * after).sum(axis=1)
    return ring[(cross != 0) | (along < 0)]


def _part_inside(contour: np.ndarray, labels: np.ndarray) -> int:
    """The part that a contour bounds: that of the inside end of the grid edge which its first point lies on."""
    for point in contour:
        for place in (np.floor(point), np.ceil(point)):
            row, column = np.clip(place.astype(np.int64) - 2, 0, np.array(labels.shape) - 1)
            if labels[row, column]:
                return int(labels[row, column])
    raise AssertionError("a contour has the mask on one side")
