"""Masks, polygons and vertices at zoom: every pixel of the mask is a square, so that half a pixel shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from integration.polygons import Polygon

BACKGROUND, MASK, LINE, VERTEX = (250, 250, 248), (168, 200, 232), (200, 30, 60), (120, 0, 30)
MARGIN_PX = 2
LARGEST_SIDE = 4000  # of the picture
_SMOOTH = 3  # drawn this much larger and scaled down


def draw_polygons(
    mask_hw: np.ndarray,
    polygons: Sequence[Polygon],
    zoom: int,
    *,
    window_xyxy: tuple[int, int, int, int] | None = None,
) -> Image.Image:
    """The mask around its extent, with the outlines and vertices on it.

    Args:
        mask_hw: bool, H x W.
        polygons: in pixel edges.
        zoom: picture pixels for a mask pixel; less where the picture would be larger than `LARGEST_SIDE`.
        window_xyxy: the part of the mask to show, else all of it that is set.

    Returns:
        An RGB picture.
    """
    left, top, right, bottom = window_xyxy or _extent(mask_hw)
    zoom = max(1, min(zoom, LARGEST_SIDE // max(right - left, bottom - top)))
    scale = zoom * _SMOOTH
    pixels = np.full((bottom - top, right - left, 3), BACKGROUND, dtype=np.uint8)
    rows, columns = np.nonzero(mask_hw[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)])
    pixels[rows + max(-top, 0), columns + max(-left, 0)] = MASK
    size = ((right - left) * scale, (bottom - top) * scale)
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    width = max(2, min(scale // 5, 3 * _SMOOTH))
    for polygon in polygons:
        for ring in (polygon.exterior, *polygon.holes):
            points = [tuple(point) for point in ((ring - (left, top)) * scale).tolist()]
            draw.line([*points, points[0]], fill=LINE, width=width, joint="curve")
            for x, y in points:
                draw.ellipse((x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width), fill=VERTEX)
    return picture.resize((size[0] // _SMOOTH, size[1] // _SMOOTH), Image.Resampling.LANCZOS)


def _extent(mask_hw: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if not len(rows):
        return 0, 0, mask_hw.shape[1], mask_hw.shape[0]
    return (
        int(columns[0]) - MARGIN_PX,
        int(rows[0]) - MARGIN_PX,
        int(columns[-1]) + 1 + MARGIN_PX,
        int(rows[-1]) + 1 + MARGIN_PX,
    )
