"""Scenes of another domain than the shipped model's: a class it never saw, and another look (a negative, in one hue).

For the rehearsal of the learning loop: a model that is good on ordinary scenes starts weak here, and can learn it from
a few dozen pictures.
"""

from __future__ import annotations

import numpy as np

from training.synthetic.backgrounds import background, noise
from training.synthetic.rendering import Sprite, draw_sprite, random_sprite
from training.synthetic.scenes import Scene, place_sprites
from training.synthetic.shapes import SHAPES, Outline, box

NEW_CLASS = "comb"
SHIFTED_CLASSES: tuple[str, ...] = ("gear", "key", "star", NEW_CLASS)
# What the picture's darkness becomes: from the colour of the brightest spot to that of the darkest.
_BRIGHT = np.array([0.10, 0.16, 0.20], np.float32)
_DARK = np.array([0.92, 0.98, 0.80], np.float32)


def comb(rng: np.random.Generator) -> Outline:
    """A comb: a long back with many thin teeth; coordinates as in `training.synthetic.shapes`."""
    teeth = int(rng.integers(9, 16))
    back, reach = rng.uniform(0.1, 0.16), rng.uniform(0.3, 0.45)
    pitch = 1.9 / teeth
    solids = [box(-1, -back - reach / 2, 1, back - reach / 2)]
    for number in range(teeth):
        left = -0.95 + number * pitch
        solids.append(box(left, -reach / 2, left + pitch * 0.5, reach))
    return Outline(tuple(solids), (), (np.array([[-0.9, -reach / 2], [0.9, -reach / 2]]),))


def generate_shifted_scene(seed: int, *, width: int = 256, height: int = 192) -> Scene:
    """The scene of a seed: two to four objects of `SHIFTED_CLASSES`, hardly hidden.

    Raises:
        ValueError: if width or height is below 64 px.
    """
    if min(width, height) < 64:
        raise ValueError(f"a scene needs at least 64 x 64 px, got {width} x {height}")
    rng = np.random.default_rng([seed, 6])
    canvas = background(rng, height, width)
    light = float(rng.uniform(0, 2 * np.pi))
    placed = _place(rng, width, height, light)
    for sprite, _ in reversed(placed):
        draw_sprite(canvas, sprite)
    return Scene(_another_look(rng, canvas), tuple((sprite.label, visible) for sprite, visible in placed))


def _place(rng: np.random.Generator, width: int, height: int, light: float) -> list[tuple[Sprite, np.ndarray]]:
    def drawn(_: object) -> Sprite:
        label = SHIFTED_CLASSES[int(rng.integers(len(SHIFTED_CLASSES)))]
        outline = comb(rng) if label == NEW_CLASS else SHAPES[label](rng)
        centre = (float(rng.uniform(0.15, 0.85) * width), float(rng.uniform(0.15, 0.85) * height))
        length_px = float(rng.uniform(0.4, 0.8)) * min(width, height)
        return random_sprite(rng, label, outline, centre, length_px, light)

    wanted = int(rng.integers(2, 5))
    return place_sprites(drawn, wanted, 4 * wanted, (height, width), 0.85, 80)


def _another_look(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """A negative in one hue with stripes and grain, as some cameras of other spectra give."""
    height, width = canvas.shape[:2]
    grey = np.clip(canvas @ np.array([0.3, 0.59, 0.11], np.float32), 0, 1)[..., None]
    picture = _DARK + (_BRIGHT - _DARK) * grey
    stripes = np.sin(np.arange(height) * rng.uniform(0.5, 1.2))[:, None, None] * 0.015
    grain = rng.standard_normal((height, width, 3), dtype=np.float32) * 0.02
    picture = picture + stripes + grain + noise(rng, height, width, coarsest_px=4, octaves=1)[..., None] * 0.02
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
