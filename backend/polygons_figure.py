"""A picture of the ways to outline a mask, side by side, and of what accepting and retraining does to it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from backend.outline_methods import METHODS, Method, opencv
from backend.polygon_picture import draw_polygons
from backend.polygons_benchmark import overlap
from integration.deviation import deviation_px
from integration.polygons import exact_polygons, polygons_to_mask

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
    ways = {"OpenCV contour": (opencv, 0.0)} | {
        label: (method, tolerance_px) for label, method in METHODS.items()
    }
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
    _write(
        draw,
        0,
        title,
        f"{vertices} vertices   IoU {overlap(mask_hw, polygons):.3f}   Hausdorff {distance:.2f} px",
    )
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
