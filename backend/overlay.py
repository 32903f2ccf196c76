"""Instances drawn on their image: tinted masks with a crisp outline, and a label for each."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.instance import Instance

TINT = 0.45
# Turning by the golden ratio keeps the colours of neighbours apart, however many there are.
GOLDEN_TURN = 0.61803399


def draw_overlay(image_rgb: np.ndarray, instances: Sequence[Instance]) -> Image.Image:
    """The image with every instance on it, the best ones on top.

    Args:
        image_rgb: uint8, H x W x 3.
        instances: of this image, by falling score.

    Returns:
        An RGB picture of the image's size.
    """
    canvas = image_rgb.astype(np.float32)
    colours = [instance_colour(number) for number in range(len(instances))]
    for instance, colour in reversed(list(zip(instances, colours, strict=True))):
        canvas[instance.mask_hw] = canvas[instance.mask_hw] * (1 - TINT) + np.array(colour) * TINT
        canvas[outline(instance.mask_hw)] = colour
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    for instance, colour in reversed(list(zip(instances, colours, strict=True))):
        _write_label(picture, instance, colour)
    return picture


def instance_colour(number: int) -> tuple[int, int, int]:
    """A bright RGB colour of its own for each number."""
    red, green, blue = colorsys.hsv_to_rgb(number * GOLDEN_TURN % 1, 0.8, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def outline(mask_hw: np.ndarray) -> np.ndarray:
    """The mask's pixels that have a neighbour outside it; the image's edge is no outline."""
    padded = np.pad(mask_hw, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask_hw & ~inside


def _write_label(picture: Image.Image, instance: Instance, colour: tuple[int, int, int]) -> None:
    size_px = max(11, round(min(picture.size) / 40))
    font = ImageFont.load_default(size_px)
    text = f"{instance.label} {instance.score:.2f}"
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    x = min(max(instance.box_xyxy[0], 0), max(picture.width - right, 0))
    y = min(max(instance.box_xyxy[1] - bottom, 0), max(picture.height - bottom, 0))
    draw.rectangle((x + left - 1, y + top - 1, x + right + 1, y + bottom + 1), fill=colour)
    draw.text((x, y), text, font=font, fill="black")
