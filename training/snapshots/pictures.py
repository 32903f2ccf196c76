"""Pictures of the objects whose outlines people moved farthest.

Shapes: H, W image size.
"""

from __future__ import annotations

import heapq

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from model.instance import box_of
from training.snapshots.corrections import Correction

BEFORE_RGB, AFTER_RGB = (255, 110, 0), (0, 230, 255)
_TILE_PX, _CAPTION_PX, _GAP_PX, _COLUMNS = 240, 18, 6, 4


class MostMoved:
    """Keeps pictures of the objects whose outlines moved farthest (mean), without keeping the images."""

    def __init__(self, limit: int = 12) -> None:
        self.limit = limit
        self._tiles: list[tuple[float, str, Image.Image]] = []

    def add(
        self, image_rgb: np.ndarray, before_hw: np.ndarray, after_hw: np.ndarray, correction: Correction, *, name: str
    ) -> None:
        """Take an object, if it is among the farthest so far; `name` tells it apart, e.g. "task 7 r2"."""
        if not correction.vertices or (
            len(self._tiles) >= self.limit and (correction.mean_px, name) <= self._tiles[0][:2]
        ):
            return
        caption = f"{correction.label}  {correction.mean_px:.1f} px, max {correction.max_px:.0f}  {name}"
        tile = _tile(image_rgb, before_hw, after_hw, caption)
        heapq.heappush(self._tiles, (correction.mean_px, name, tile))
        if len(self._tiles) > self.limit:
            heapq.heappop(self._tiles)

    def sheet(self) -> Image.Image | None:
        """All of them, the farthest first; None when no outline was moved."""
        tiles = [tile for _, _, tile in sorted(self._tiles, key=lambda item: (-item[0], item[1]))]
        if not tiles:
            return None
        columns = min(_COLUMNS, len(tiles))
        width, height = _TILE_PX + _GAP_PX, _TILE_PX + _CAPTION_PX + _GAP_PX
        rows = -(-len(tiles) // columns)
        sheet = Image.new("RGB", (columns * width + _GAP_PX, rows * height + _GAP_PX + _CAPTION_PX), "white")
        _legend(sheet)
        for number, tile in enumerate(tiles):
            x, y = number % columns * width, number // columns * height
            sheet.paste(tile, (x + _GAP_PX, y + _GAP_PX + _CAPTION_PX))
        return sheet


def _tile(image_rgb: np.ndarray, before_hw: np.ndarray, after_hw: np.ndarray, caption: str) -> Image.Image:
    left, top, right, bottom = box_of(before_hw | after_hw)
    margin = max(8, round(0.08 * max(right - left, bottom - top)))
    height, width = before_hw.shape
    window = (
        slice(max(top - margin, 0), min(bottom + margin, height)),
        slice(max(left - margin, 0), min(right + margin, width)),
    )
    crop = Image.fromarray(image_rgb[window])
    scale = min(_TILE_PX / crop.width, _TILE_PX / crop.height)
    size = max(1, round(crop.width * scale)), max(1, round(crop.height * scale))
    picture = np.asarray(crop.resize(size, Image.Resampling.BICUBIC)).copy()
    for mask_hw, colour in ((before_hw, BEFORE_RGB), (after_hw, AFTER_RGB)):
        shape = np.asarray(Image.fromarray(mask_hw[window]).resize(size, Image.Resampling.NEAREST))
        picture[shape & ~ndimage.binary_erosion(shape, np.ones((3, 3)), border_value=0)] = colour
    tile = Image.new("RGB", (_TILE_PX, _TILE_PX + _CAPTION_PX), "white")
    tile.paste(Image.fromarray(picture), ((_TILE_PX - size[0]) // 2, (_TILE_PX - size[1]) // 2))
    ImageDraw.Draw(tile).text((2, _TILE_PX + 2), caption, fill="black", font=_font())
    return tile


def _legend(sheet: Image.Image) -> None:
    draw = ImageDraw.Draw(sheet)
    x = _GAP_PX
    for text, colour in (("predicted", BEFORE_RGB), ("submitted", AFTER_RGB)):
        draw.rectangle((x, 8, x + 14, 14), fill=colour, outline="black")
        draw.text((x + 20, 4), text, fill="black", font=_font())
        x += 30 + round(draw.textlength(text, font=_font()))


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(11)
