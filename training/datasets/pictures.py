"""Pictures for people: masks tinted and outlined, cells with captions, sheets of cells.

Shapes: H, W size of an image in pixels; N objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage

from model.instance import window_of
from training.datasets.sample import Sample

if TYPE_CHECKING:  # drawing needs no torch
    from detectron2.structures import Instances

COLOURS = np.array(
    [[230, 60, 60], [60, 180, 75], [60, 110, 235], [245, 190, 40], [170, 60, 220], [40, 200, 210], [250, 130, 40]]
)
CROWD_RGB = (128, 128, 128)
CAPTION_PX = 14
SHOWN_FROM = 0.5  # score of a detection in a comparison
#: Characters of a caption take about so many pixels.
_LETTER_PX = 6


def outline_of(mask_hw: np.ndarray) -> np.ndarray:
    """Pixels of a bool H x W mask with a neighbour outside of it, bool H x W; the image's outside counts as such."""
    outline: np.ndarray = mask_hw & ~ndimage.binary_erosion(mask_hw)
    return outline


def tinted(
    image: np.ndarray, masks: Sequence[np.ndarray] | np.ndarray, colours: Sequence[np.ndarray] | np.ndarray
) -> np.ndarray:
    """Tint bool N x H x W masks over an RGB uint8 image and draw their outlines, in RGB colours (N, 3)."""
    picture = image.astype(np.float32)
    for mask, colour in zip(masks, colours, strict=True):
        picture[mask] = picture[mask] * 0.5 + colour * 0.5
        picture[outline_of(mask)] = colour
    return picture.astype(np.uint8)


def class_colours(classes: np.ndarray) -> np.ndarray:
    """RGB colours (N, 3) of N class numbers."""
    return COLOURS[classes % len(COLOURS)]


def cell(
    image: np.ndarray, masks: np.ndarray, colours: np.ndarray, size_px: tuple[int, int], ground: str = "white"
) -> Image.Image:
    """Fit an image into a cell (width, height) and tint its masks; their thin parts stay visible."""
    picture = ImageOps.contain(Image.fromarray(image), size_px)
    small = [
        np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BOX)) > 96
        for mask in masks
    ]
    return ImageOps.pad(Image.fromarray(tinted(np.asarray(picture), small, colours)), size_px, color=ground)


def close_up(
    image: np.ndarray, outlines: Sequence[tuple[np.ndarray, tuple[int, int, int]]], margin_px: int, side_px: int
) -> Image.Image:
    """Crop the image around masks (bool H x W, not all empty) into a square cell, each outlined in its colour."""
    window = window_of(np.any([mask_hw for mask_hw, _ in outlines], axis=0), margin_px)
    picture = ImageOps.contain(Image.fromarray(image[window]), (side_px, side_px))
    pixels = np.array(picture)
    for mask_hw, colour in outlines:
        pixels[outline_of(np.asarray(Image.fromarray(mask_hw[window]).resize(picture.size)))] = colour
    return ImageOps.pad(Image.fromarray(pixels), (side_px, side_px), color="white")


def captioned(picture: Image.Image, *lines: str) -> Image.Image:
    """Put lines of text above a picture."""
    canvas = Image.new("RGB", (picture.width, picture.height + len(lines) * CAPTION_PX), "white")
    draw = ImageDraw.Draw(canvas)
    for number, text in enumerate(lines):
        caption = text[: picture.width // _LETTER_PX].encode("latin-1", "replace").decode("latin-1")
        draw.text((3, number * CAPTION_PX + 1), caption, fill="black", font=ImageFont.load_default(11))
    canvas.paste(picture, (0, len(lines) * CAPTION_PX))
    return canvas


def in_rows(rows: Sequence[Sequence[Image.Image]], gap_px: int = 4) -> Image.Image:
    """Pictures in rows, white in between; a column is as wide as its widest picture, a row as high as its highest."""
    widths = [max(row[x].width for row in rows if x < len(row)) for x in range(max(map(len, rows)))]
    heights = [max(picture.height for picture in row) for row in rows]
    size = (sum(widths) + gap_px * (len(widths) - 1), sum(heights) + gap_px * (len(heights) - 1))
    sheet = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (sum(widths[:x]) + gap_px * x, sum(heights[:y]) + gap_px * y))
    return sheet


def in_grid(pictures: Sequence[Image.Image], columns: int, gap_px: int = 0) -> Image.Image:
    """Pictures row by row; a white pixel where there are none."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    return in_rows(rows or [[Image.new("RGB", (1, 1), "white")]], gap_px)


def save_picture(picture: Image.Image, file: Path) -> None:
    """Write an image file, with its folder; the suffix tells the format."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)


def comparison_row(sample: Sample, instances: Instances) -> list[Image.Image]:
    """Truth, coarse masks and refined masks of a sample; ``instances`` has ``pred_masks`` and ``pred_coarse_masks``."""
    detections = instances[instances.scores >= SHOWN_FROM]
    colours = class_colours(detections.pred_classes.numpy())
    kinds = [
        (sample.masks, class_colours(sample.classes)),
        (detections.pred_coarse_masks.numpy().astype(bool), colours),
        (detections.pred_masks.numpy().astype(bool), colours),
    ]
    return [Image.fromarray(tinted(sample.image, *kind)) for kind in kinds]
