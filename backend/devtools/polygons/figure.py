"""Masks, polygons and vertices at zoom: every pixel of the mask is a square, so that half a pixel shows.

A picture of the ways to outline a mask, side by side, and of what accepting and retraining does to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from backend.devtools.polygons.benchmark import METHODS, Method, opencv, overlap
from integration.polygons.convert import Polygon, exact_polygons, polygons_to_mask
from integration.polygons.hausdorff import deviation_px

BACKGROUND, MASK, LINE, VERTEX = (250, 250, 248), (168, 200, 232), (200, 30, 60), (120, 0, 30)
MARGIN_PX = 2
LARGEST_SIDE = 4000  # of the picture
_SMOOTH = 3  # drawn this much larger and scaled down


def draw_polygons(
    mask_hw: np.ndarray, polygons: Sequence[Polygon], zoom: int, *, window_xyxy: tuple[int, int, int, int] | None = None
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


SIDE_PX = 46  # of the mask shown
ZOOM = 9
ROUNDS = 5
INK, PALE = (40, 40, 44), (120, 120, 126)


def leaf_mask() -> np.ndarray:
    """A small leaf with a thin stalk and a hole: bool, `SIDE_PX` square."""
    y, x = (np.mgrid[:SIDE_PX, :SIDE_PX] + 0.5).astype(np.float64)
    angle, radius = np.arctan2(y - 19, x - 23), np.hypot(y - 19, x - 23)
    blade = radius < 13.5 + 3.2 * np.cos(5 * angle + 0.5)
    stalk = (np.abs(x - 24 - (y - 30) * 0.3) < 1.6) & (y > 24) & (y < 43)
    hole = np.hypot(y - 16, x - 25) < 4
    return (blade | stalk) & ~hole


def shrinkage(mask_hw: np.ndarray, method: Method, tolerance_px: float) -> list[float]:
    """Area, as a share of the mask's, after each round of outlining, accepting as is and learning it perfectly.

    Returns:
        `ROUNDS` shares.
    """
    area, current, shares = int(mask_hw.sum()), mask_hw, []
    for _ in range(ROUNDS):
        current = polygons_to_mask(method(current, tolerance_px), *mask_hw.shape)
        shares.append(int(current.sum()) / area)
    return shares


def comparison_figure(mask_hw: np.ndarray, tolerance_px: float) -> Image.Image:
    """The mask through OpenCV's contours and each of `METHODS`: above as outlined, below after `ROUNDS` rounds."""
    ways = {"OpenCV contour": (opencv, 0.0)} | {label: (method, tolerance_px) for label, method in METHODS.items()}
    panels = [_panel(mask_hw, label, method, tolerance) for label, (method, tolerance) in ways.items()]
    gap = 24
    sheet = Image.new(
        "RGB", (sum(p.width for p in panels) + gap * (len(panels) + 1), panels[0].height + 2 * gap), "white"
    )
    x = gap
    for panel in panels:
        sheet.paste(panel, (x, gap))
        x += panel.width + gap
    return sheet


def _panel(mask_hw: np.ndarray, label: str, method: Method, tolerance_px: float) -> Image.Image:
    polygons = method(mask_hw, tolerance_px)
    current = mask_hw
    for _ in range(ROUNDS - 1):
        current = polygons_to_mask(method(current, tolerance_px), *mask_hw.shape)
    window = (0, 0, mask_hw.shape[1], mask_hw.shape[0])
    above = draw_polygons(mask_hw, polygons, ZOOM, window_xyxy=window)
    below = draw_polygons(mask_hw, method(current, tolerance_px), ZOOM, window_xyxy=window)
    vertices = sum(polygon.vertex_count for polygon in polygons)
    distance = deviation_px(polygons, exact_polygons(mask_hw))
    shares = shrinkage(mask_hw, method, tolerance_px)
    text_height = 58
    panel = Image.new("RGB", (above.width, 2 * (above.height + text_height)), "white")
    draw = ImageDraw.Draw(panel)
    title = f"{label}, {tolerance_px:g} px" if tolerance_px else label
    _write(draw, 0, title, f"{vertices} vertices   IoU {overlap(mask_hw, polygons):.3f}   Hausdorff {distance:.2f} px")
    panel.paste(above, (0, text_height))
    _write(
        draw,
        above.height + text_height,
        f"accepted and learnt {ROUNDS} times",
        "area " + "  ".join(f"{share:.0%}" for share in shares),
    )
    panel.paste(below, (0, above.height + 2 * text_height))
    return panel


def _write(draw: ImageDraw.ImageDraw, top: int, title: str, line: str) -> None:
    draw.text((0, top + 4), title, font=ImageFont.load_default(20), fill=INK)
    draw.text((0, top + 31), line, font=ImageFont.load_default(16), fill=PALE)
