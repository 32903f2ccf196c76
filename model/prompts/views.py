"""Views: the window around a prompt, its pixels at a fixed size, and masks carried between view and image.

Coordinates are continuous pixel edges; a window may reach over the image's border, where the view shows a plain colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

#: A box is shown with this much of its size around it.
MARGIN = 1.4
#: The longer side of a window is at most this many times the shorter one: pixels are stretched no further.
MOST_STRETCH = 2.0
#: Least side of a window: a smaller one shows only blur.
LEAST_SIDE_PX = 24.0
#: Colour outside the image: about NanoDet's mean.
OUTSIDE_RGB = (124, 116, 104)


@dataclass(frozen=True, slots=True)
class View:
    """A window of an image, shown at `side` x `side` pixels; `box_xyxy` in image pixels."""

    box_xyxy: tuple[float, float, float, float]
    side: int

    def to_view(self, points_xy: np.ndarray) -> np.ndarray:
        """(N, 2) image points in pixels of the view."""
        x0, y0, x1, y1 = self.box_xyxy
        return (np.asarray(points_xy, float) - (x0, y0)) * (self.side / (x1 - x0), self.side / (y1 - y0))

    def pixels(self, image: np.ndarray, fill: tuple[int, ...] | int = OUTSIDE_RGB) -> np.ndarray:
        """The window of a uint8 H x W (x 3) image, or of a bool H x W mask as 0 to 255, side x side."""
        x0, y0, x1, y1 = self.box_xyxy
        height, width = image.shape[:2]
        left, top, right, bottom = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        canvas = Image.new("RGB" if image.ndim == 3 else "L", (self.side, self.side), fill)
        corners = self.to_view(np.array([[left, top], [right, bottom]])).round().astype(int)
        (u0, v0), (u1, v1) = corners.tolist()
        if right - left > 0 and bottom - top > 0 and u1 > u0 and v1 > v0:
            # Crop first: Pillow would convert the whole picture for each view.
            a, b, c, d = int(left), int(top), min(int(np.ceil(right)), width), min(int(np.ceil(bottom)), height)
            crop = image[b:d, a:c]
            part = Image.fromarray(np.ascontiguousarray(crop if image.dtype == np.uint8 else crop * np.uint8(255)))
            box = (left - a, top - b, right - a, bottom - b)
            canvas.paste(part.resize((u1 - u0, v1 - v0), Image.Resampling.BILINEAR, box=box), (u0, v0))
        return np.asarray(canvas)

    def to_image(self, values: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
        """Float values (s, s) of the view as float32 H x W of the image, bilinear, 0 outside the window."""
        x0, y0, x1, y1 = self.box_xyxy
        height, width = shape_hw
        a, b = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
        c, d = min(int(np.ceil(x1)), width), min(int(np.ceil(y1)), height)
        out = np.zeros(shape_hw, np.float32)
        if c > a and d > b:
            out[b:d, a:c] = resampled(values, self.box_xyxy, (a, b, c, d), (d - b, c - a))
        return out


def resampled(
    values: np.ndarray, from_xyxy: Sequence[float], to_xyxy: Sequence[float], shape_hw: tuple[int, int]
) -> np.ndarray:
    """Float values that fill one window of an image as those of this shape that fill another, bilinear, else 0.

    Two small matrix products take less time than an image library's transform. Values may have dimensions before the
    rows and columns.
    """
    x0, y0, x1, y1 = from_xyxy
    left, top, right, bottom = to_xyxy
    height, width = values.shape[-2:]
    rows = _interpolation((top - y0) / (y1 - y0), (bottom - y0) / (y1 - y0), shape_hw[0], height)
    columns = _interpolation((left - x0) / (x1 - x0), (right - x0) / (x1 - x0), shape_hw[1], width)
    return np.asarray(rows @ values @ columns.T, np.float32)


def _interpolation(start: float, end: float, places: int, cells: int) -> np.ndarray:
    """Matrix (places, cells) of bilinear interpolation along an axis whose cells fill [0, 1].

    Places fill [start, end]; those beyond the cells get 0.
    """
    position = (start + (np.arange(places) + 0.5) / places * (end - start)) * cells
    low = np.floor(position - 0.5)
    fraction = position - 0.5 - low
    matrix = np.zeros((places, cells), np.float32)
    for step, weight in ((0, 1 - fraction), (1, fraction)):
        matrix[np.arange(places), (low + step).clip(0, cells - 1).astype(int)] += weight
    matrix[(position < 0) | (position > cells)] = 0.0
    return matrix


def view_of_box(box_xyxy: Sequence[float], side: int, margin: float = MARGIN) -> View:
    """The view of an object with this box."""
    x0, y0, x1, y1 = box_xyxy
    width, height = max(x1 - x0, 1.0) * margin, max(y1 - y0, 1.0) * margin
    width = max(width, height / MOST_STRETCH, LEAST_SIDE_PX)
    height = max(height, width / MOST_STRETCH, LEAST_SIDE_PX)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return View((x - width / 2, y - height / 2, x + width / 2, y + height / 2), side)


def view_of_image(shape_hw: tuple[int, int], side: int) -> View:
    """The whole image, stretched to a square as far as `MOST_STRETCH` allows."""
    height, width = float(shape_hw[0]), float(shape_hw[1])
    return view_of_box((0.0, 0.0, width, height), side, margin=1.0)
