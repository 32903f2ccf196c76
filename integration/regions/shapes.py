"""The geometry of one object as Label Studio region values: percent of the upright image, 0..100.

Shapes: H, W mask size; N points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from integration.polygons.exact import Polygon, exact_polygons
from integration.polygons.joining import join_polygons
from integration.regions.painted import encode_bitmask, encode_brush_mask
from model.instance import iou

#: Decimals of a percent kept: 5e-9 % of 100,000 pixels is far below what rasterising at pixel centres can see.
_DECIMALS = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """One region's geometry.

    Attributes:
        note: what a person should know about it, for `meta.text`; at most one sentence.
    """

    value: dict[str, Any]
    note: str = ""


def polygon_shapes(
    outlined: Sequence[Polygon], *, width: int, height: int, joined: bool, max_vertices: int | None
) -> list[Shape]:
    """Closed polygons whose holes are cut open to the outside, the largest first.

    Args:
        joined: one polygon for the object, its parts joined by cuts; else one for each part, the largest first.
        max_vertices: that was asked for, for the note.
    """
    polygons = sorted(outlined, key=lambda polygon: -polygon.area_px)
    objects = [polygons] if joined and polygons else [[polygon] for polygon in polygons]
    rings = [join_polygons(parts) for parts in objects]
    regions = []
    for number, ring in enumerate(rings, start=1):
        note = f"Part {number} of {len(rings)} of one object." if len(rings) > 1 else ""
        if max_vertices is not None and len(ring) > max_vertices:
            note = f"More than {max_vertices} points, because its parts would overlap with fewer."
        value = {"points": percent(ring, width, height).tolist(), "closed": True}
        regions.append(Shape(value, note))
    return regions


def brush_shapes(mask_hw: np.ndarray) -> list[Shape]:
    """The exact mask, parts and holes included, as Label Studio's run-length code."""
    return [Shape({"format": "rle", "rle": encode_brush_mask(mask_hw)})]


def bitmask_shapes(mask_hw: np.ndarray) -> list[Shape]:
    """The exact mask, parts and holes included, as a PNG."""
    return [Shape({"imageDataURL": encode_bitmask(mask_hw)})]


def rectangle_shapes(
    mask_hw: np.ndarray, box_xyxy: tuple[float, float, float, float], *, min_area_px: float
) -> list[Shape]:
    """The box around the mask; the detector's box where the mask is empty."""
    box = np.array(mask_box(mask_hw) or box_xyxy, dtype=np.float64).reshape(2, 2)
    height, width = mask_hw.shape
    (x, y), (right, bottom) = percent(box, width, height)
    area_px = (right - x) * (bottom - y) * width * height / 1e4
    if not area_px >= max(min_area_px, 1e-9):  # also catches boxes that are not numbers
        return []
    size = {"width": round(right - x, _DECIMALS), "height": round(bottom - y, _DECIMALS)}
    return [Shape({"x": float(x), "y": float(y), **size, "rotation": 0})]


def vector_shapes(polygons: Sequence[Shape]) -> list[Shape]:
    """The same outlines as closed paths of straight edges (`vertices` in place of `points`)."""
    regions = []
    for shape in polygons:
        vertices = [
            {"id": f"v{number}", "x": x, "y": y, "isBezier": False, "prevPointId": f"v{number - 1}" if number else None}
            for number, (x, y) in enumerate(shape.value["points"])
        ]
        regions.append(replace(shape, value={"vertices": vertices, "closed": True}))
    return regions


def ellipse_shapes(mask_hw: np.ndarray) -> list[Shape]:
    """The ellipse with the centre, area and second moments of the mask; its note says how well it fits.

    Second moments of an ellipse: its half axes are twice their square roots; scaled to the mask's area.
    """
    area_px = int(mask_hw.sum())
    height, width = mask_hw.shape
    points = np.argwhere(mask_hw)[:, ::-1] + 0.5
    centre = points.mean(axis=0)
    # 1/12: the second moment of a pixel about its own centre.
    moments, axes = np.linalg.eigh(np.cov((points - centre).T, bias=True).reshape(2, 2) + np.eye(2) / 12)
    long, short = np.sqrt(moments[::-1] * area_px / (math.pi * np.sqrt(moments.prod())))
    angle = math.atan2(axes[1, 1], axes[0, 1]) % math.pi
    y, x = np.mgrid[:height, :width] + 0.5
    along = (x - centre[0]) * math.cos(angle) + (y - centre[1]) * math.sin(angle)
    across = (y - centre[1]) * math.cos(angle) - (x - centre[0]) * math.sin(angle)
    overlap = iou((along / long) ** 2 + (across / short) ** 2 <= 1, mask_hw)
    # Label Studio takes no radius above half the image.
    size = {
        "radiusX": round(min(100 * float(long) / width, 50.0), _DECIMALS),
        "radiusY": round(min(100 * float(short) / height, 50.0), _DECIMALS),
        "rotation": round(math.degrees(angle), _DECIMALS),
    }
    x_pct, y_pct = percent(centre, width, height)
    return [Shape({"x": float(x_pct), "y": float(y_pct), **size}, f"Ellipse with IoU {overlap:.2f}.")]


def mask_box(mask_hw: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of a mask in pixel edges; None when it is empty."""
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def has_holes(mask_hw: np.ndarray, min_area_px: float) -> bool:
    """Whether a mask has a hole of at least `min_area_px`."""
    return any(polygon.holes for polygon in exact_polygons(mask_hw, min_area_px=min_area_px))


def percent(points_px: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixel edges (N, 2) to percent of the image, clamped: Label Studio's validation refuses 100.0000001."""
    return np.clip(np.round(points_px * 100 / np.array([width, height]), _DECIMALS), 0, 100)
