"""Generated scenes: overlapping thin and jagged objects with exact visible masks, from a seed alone.

The same seed gives the same scene, pixel for pixel. The splits use disjoint ranges of seeds (`scene_seed`).

Shifted scenes are of another domain than the shipped model's: a class that it does not know, and other colours (a
negative, in one hue). They are for the rehearsal of the learning loop: a model of ordinary scenes is weak on them, and
learns them from a few dozen pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from training.synthetic.rendering import Sprite, background, draw_sprite, noise, random_sprite
from training.synthetic.shapes import CLUTTER, SHAPES, Outline, box

CLASSES: tuple[str, ...] = tuple(SHAPES)
SPLITS = {"train": 0, "val": 1_000_000_000, "demo": 2_000_000_000}
_SPLIT_SIZE = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Scene:
    """One generated picture with its objects.

    Attributes:
        image: RGB, uint8, H x W x 3.
        instances: (class name, visible mask as bool H x W) a labelled object, front to back.
    """

    image: np.ndarray
    instances: tuple[tuple[str, np.ndarray], ...]


def scene_seed(split: str, index: int) -> int:
    """The seed of a split's index-th scene. Raises ValueError for an unknown split or an index out of range."""
    if split not in SPLITS:
        raise ValueError(f"unknown split of scenes {split!r}; choose one of {', '.join(SPLITS)}")
    if not 0 <= index < _SPLIT_SIZE:
        raise ValueError(f"scene index {index} is outside 0..{_SPLIT_SIZE - 1}")
    return SPLITS[split] + index


def generate_scene(
    seed: int, *, width: int = 384, height: int = 288, least_visible: float = 0.6, least_area_px: int = 90
) -> Scene:
    """Draw the scene of a seed.

    An object is placed only if at least `least_visible` of its area and `least_area_px` pixels of it show, so
    nothing recognisable is ever left unlabelled.

    Raises:
        ValueError: if width or height is below 64 px.
    """
    if min(width, height) < 64:
        raise ValueError(f"a scene needs at least 64 x 64 px, got {width} x {height}")
    rng = np.random.default_rng(seed)
    canvas = background(rng, height, width)
    light = float(rng.uniform(0, 2 * np.pi))
    layers = _place(rng, width, height, light, least_visible, least_area_px)
    for sprite in _clutter(rng, width, height, light):
        draw_sprite(canvas, sprite)
    for sprite, _ in reversed(layers):
        draw_sprite(canvas, sprite)
    return Scene(_photographed(rng, canvas), tuple((sprite.label, visible) for sprite, visible in layers))


def _place(
    rng: np.random.Generator, width: int, height: int, light: float, least_visible: float, least_area_px: int
) -> list[tuple[Sprite, np.ndarray]]:
    """Place objects from front to back, so that the visible part of the next one is known when it is tried."""

    def random_object(layers: list[tuple[Sprite, np.ndarray]]) -> Sprite:
        label = CLASSES[int(rng.integers(len(CLASSES)))]
        length_px = _length_px(rng, label, min(width, height))
        centre = _centre(rng, width, height, layers)
        return random_sprite(rng, label, SHAPES[label](rng), centre, length_px, light)

    count = int(rng.integers(2, 6))
    return place_sprites(random_object, count, 3 * count, (height, width), least_visible, least_area_px)


def place_sprites(
    draw: Callable[[list[tuple[Sprite, np.ndarray]]], Sprite],
    count: int,
    tries: int,
    shape_hw: tuple[int, int],
    least_visible: float,
    least_area_px: int,
) -> list[tuple[Sprite, np.ndarray]]:
    """Place `count` sprites, front to back, in at most `tries` tries; each with its visible mask (bool H x W).

    A sprite is placed if at least `least_visible` of its area and `least_area_px` pixels of it are visible.

    Args:
        draw: makes the next sprite, given the sprites placed so far.
    """
    layers: list[tuple[Sprite, np.ndarray]] = []
    covered_hw = np.zeros(shape_hw, bool)
    while len(layers) < count and tries > 0:
        tries -= 1
        sprite = draw(layers)
        mask = sprite.mask(*shape_hw)
        visible = mask & ~covered_hw
        if int(visible.sum()) >= max(least_area_px, least_visible * sprite.area_px):
            layers.append((sprite, visible))
            covered_hw |= mask
    return layers


def _length_px(rng: np.random.Generator, label: str, side_px: int) -> float:
    """Choose an object's length: from a fifth of the picture's short side to all of it; slim tools may be longer."""
    if rng.random() < 0.2:
        return float(rng.uniform(0.2, 0.38)) * side_px
    longest = 1.25 if label in ("key", "fork", "spanner") else 1.0
    return float(rng.uniform(0.38, longest)) * side_px


def _centre(
    rng: np.random.Generator, width: int, height: int, layers: list[tuple[Sprite, np.ndarray]]
) -> tuple[float, float]:
    """Choose an object's centre: anywhere, or close to another object, since overlaps make the scene hard."""
    if layers and rng.random() < 0.35:
        sprite = layers[int(rng.integers(len(layers)))][0]
        x, y = np.asarray(sprite.centre_px) + rng.normal(0, 0.45, 2) * sprite.length_px
    else:
        x, y = rng.uniform(0.06, 0.94) * width, rng.uniform(0.06, 0.94) * height
    return float(np.clip(x, 0.1 * width, 0.9 * width)), float(np.clip(y, 0.1 * height, 0.9 * height))


def _clutter(rng: np.random.Generator, width: int, height: int, light: float) -> list[Sprite]:
    sprites = []
    for _ in range(int(rng.integers(0, 5))):
        outline = CLUTTER[int(rng.integers(len(CLUTTER)))](rng)
        centre = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
        sprites.append(random_sprite(rng, "clutter", outline, centre, float(rng.uniform(15, 110)), light))
    return sprites


def _photographed(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Imitate a camera: a slight blur, exposure, a colour cast, sensor noise, a tone curve."""
    height, width = canvas.shape[:2]
    soft = rng.uniform(0.25, 0.75)
    picture = Image.fromarray((np.clip(canvas, 0, 1) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(soft))
    canvas = np.asarray(picture, dtype=np.float32) / 255
    canvas = canvas * rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3).astype(np.float32)
    grain = rng.standard_normal((height, width, 3), dtype=np.float32) * rng.uniform(0.004, 0.022)
    canvas += grain + noise(rng, height, width, coarsest_px=2, octaves=1)[..., None] * 0.004
    curve = ((np.arange(256) / 255) ** rng.uniform(0.85, 1.15) * 255 + 0.5).astype(np.uint8)
    return curve[(np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)]


NEW_CLASS = "comb"
SHIFTED_CLASSES: tuple[str, ...] = ("gear", "key", "star", NEW_CLASS)
# Colours of the negative: of the brightest and of the darkest spot.
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
    layers = _place_shifted(rng, width, height, light)
    for sprite, _ in reversed(layers):
        draw_sprite(canvas, sprite)
    return Scene(_another_look(rng, canvas), tuple((sprite.label, visible) for sprite, visible in layers))


def _place_shifted(rng: np.random.Generator, width: int, height: int, light: float) -> list[tuple[Sprite, np.ndarray]]:
    def random_object(_: object) -> Sprite:
        label = SHIFTED_CLASSES[int(rng.integers(len(SHIFTED_CLASSES)))]
        outline = comb(rng) if label == NEW_CLASS else SHAPES[label](rng)
        centre = (float(rng.uniform(0.15, 0.85) * width), float(rng.uniform(0.15, 0.85) * height))
        length_px = float(rng.uniform(0.4, 0.8)) * min(width, height)
        return random_sprite(rng, label, outline, centre, length_px, light)

    count = int(rng.integers(2, 5))
    return place_sprites(random_object, count, 4 * count, (height, width), 0.85, 80)


def _another_look(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Turn a picture into a negative in one hue with stripes and grain, as from a camera of another spectrum."""
    height, width = canvas.shape[:2]
    grey = np.clip(canvas @ np.array([0.3, 0.59, 0.11], np.float32), 0, 1)[..., None]
    picture = _DARK + (_BRIGHT - _DARK) * grey
    stripes = np.sin(np.arange(height) * rng.uniform(0.5, 1.2))[:, None, None] * 0.015
    grain = rng.standard_normal((height, width, 3), dtype=np.float32) * 0.02
    picture = picture + stripes + grain + noise(rng, height, width, coarsest_px=4, octaves=1)[..., None] * 0.02
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
