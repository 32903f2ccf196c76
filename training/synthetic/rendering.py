"""Paint a scene's background and objects: backgrounds like photographs, and lit, textured sprites.

A sprite is an outline drawn anti-aliased with a shadow, and its exact mask; its tile is the small image around it.
Images and tiles are float32 in [0, 1]; noise is float32 H x W of about zero mean and unit deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from training.synthetic.shapes import Outline


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bicubic resize of a float32 H x W array."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def blurred(image: np.ndarray, radius_px: float) -> np.ndarray:
    """Gaussian blur of a float H x W array in [0, 1] (with 8 bits inside: fast, and fine enough for shading)."""
    picture = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius_px)), dtype=np.float32) / 255


def noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    coarsest_px: float,
    octaves: int,
    stretch: float = 1.0,
    fall: float = 0.55,
) -> np.ndarray:
    """Multi-octave value noise, H x W. `stretch` > 1 draws it out along x (wood, brushed metal)."""
    total = np.zeros((height, width), np.float32)
    cell, weight = coarsest_px, 1.0
    for _ in range(octaves):
        rows, columns = max(2, int(height / cell) + 2), max(2, int(width / (cell * stretch)) + 2)
        total += weight * resized(rng.standard_normal((rows, columns), dtype=np.float32), width, height)
        cell, weight = max(cell / 2, 1.0), weight * fall
    return total / (float(total.std()) + 1e-6)


def random_colour(rng: np.random.Generator, low: float, high: float, saturation: float) -> np.ndarray:
    """A colour of shape (3,): a grey between low and high, tinted."""
    tint = rng.uniform(-saturation, saturation, 3)
    return np.clip(rng.uniform(low, high) + tint - tint.mean(), 0.02, 0.98).astype(np.float32)


def coloured(field: np.ndarray, dark: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Map noise H x W onto the line between two colours: H x W x 3."""
    return np.asarray(dark + (light - dark) * (1 / (1 + np.exp(-field)))[..., None], np.float32)


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Soil, stone, carpet: noise of two scales in two colours."""
    coarse = noise(rng, height, width, coarsest_px=rng.uniform(30, 120), octaves=5, fall=rng.uniform(0.5, 0.8))
    base = random_colour(rng, 0.15, 0.6, 0.16)
    image = coloured(coarse * rng.uniform(0.5, 1.3), base * rng.uniform(0.4, 0.75), np.clip(base * 1.5, 0, 0.95))
    return image + noise(rng, height, width, coarsest_px=3, octaves=2)[..., None] * rng.uniform(0.01, 0.05)


def _planks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A wooden table: grain drawn out along the boards, dark joints."""
    size = max(height, width)
    grain = noise(rng, size, size, coarsest_px=rng.uniform(14, 30), octaves=4, stretch=rng.uniform(6, 14), fall=0.75)
    base = np.array([0.52, 0.36, 0.22], np.float32) * rng.uniform(0.5, 1.45) + rng.uniform(-0.05, 0.05, 3).astype(
        np.float32
    )
    rows = np.arange(size) % int(rng.integers(60, 140))
    tone = 1 - 0.55 * np.exp(-((rows / 1.6) ** 2)).astype(np.float32)
    image = coloured(grain * 0.9, base * 0.65, base * 1.2) * tone[:, None, None]
    return (image if rng.random() < 0.5 else image.transpose(1, 0, 2))[:height, :width].astype(np.float32)


def _cloth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Woven cloth with soft folds, sometimes striped."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    turn, thread = rng.uniform(0, np.pi), rng.uniform(1.2, 2.6)
    u, v = x * np.cos(turn) + y * np.sin(turn), -x * np.sin(turn) + y * np.cos(turn)
    weave = np.sin(u * 2 / thread) * np.sin(v * 2 / thread) * rng.uniform(0.01, 0.05)
    folds = noise(rng, height, width, coarsest_px=rng.uniform(60, 140), octaves=2) * rng.uniform(0.03, 0.1)
    cloth = np.broadcast_to(random_colour(rng, 0.2, 0.8, 0.2), (height, width, 3))
    if rng.random() < 0.4:
        stripe = (np.sin(u / rng.uniform(5, 22)) > rng.uniform(-0.2, 0.7))[..., None]
        cloth = np.where(stripe, cloth, random_colour(rng, 0.2, 0.85, 0.2)).astype(np.float32)
    return cloth * (1 + folds[..., None]) + weave[..., None]


def _bokeh(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Out-of-focus scenery: a gradient with soft discs of light and shade."""
    rows, columns = height // 3 + 1, width // 3 + 1  # soft things need no full resolution
    top, bottom = random_colour(rng, 0.15, 0.75, 0.18), random_colour(rng, 0.1, 0.6, 0.15)
    image = top + (bottom - top) * np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    image = np.repeat(image, columns, axis=1)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    for _ in range(int(rng.integers(8, 22))):
        radius, soft = rng.uniform(4, 24), rng.uniform(1, 5)
        away = np.hypot(x - np.float32(rng.uniform(0, columns)), y - np.float32(rng.uniform(0, rows)))
        strength = (0.65 / (1 + np.exp(np.clip((away - radius) / soft, -30, 30))))[..., None]
        image += (random_colour(rng, 0.1, 0.85, 0.22) - image) * strength
    image = np.stack([resized(np.ascontiguousarray(image[..., c]), width, height) for c in range(3)], axis=-1)
    return image + noise(rng, height, width, coarsest_px=40, octaves=3)[..., None] * 0.02


BACKGROUNDS: tuple[Callable[[np.random.Generator, int, int], np.ndarray], ...] = (_ground, _planks, _cloth, _bokeh)


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random background, H x W x 3 float32 in [0, 1], lit from one side."""
    image = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))](rng, height, width)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    lamp = 1 + rng.uniform(-0.22, 0.22) * x + rng.uniform(-0.22, 0.22) * y - rng.uniform(0, 0.2) * (x * x + y * y)
    return np.clip(image * lamp[..., None], 0, 1).astype(np.float32)


SUPERSAMPLING = 3


@dataclass(frozen=True, slots=True)
class Sprite:
    """An object to draw on a canvas.

    Attributes:
        label: its class name, or "clutter".
        centre_px: x and y of the tile's middle on the canvas.
        length_px: the length of its long axis.
        left_px, top_px: the tile's corner on the canvas (may be outside of it).
        alpha: tile h x w, coverage of each pixel.
        colour: tile h x w x 3.
        shade: tile h x w, darkness of its shadow, drawn at an offset of shadow_px (x, y).
    """

    label: str
    centre_px: tuple[float, float]
    length_px: float
    left_px: int
    top_px: int
    alpha: np.ndarray
    colour: np.ndarray
    shade: np.ndarray
    shadow_px: tuple[int, int]

    @property
    def area_px(self) -> int:
        """Pixels of the whole object, on the canvas or not."""
        return int((self.alpha >= 0.5).sum())

    def mask(self, height: int, width: int) -> np.ndarray:
        """Bool H x W of the canvas: pixels at least half covered."""
        mask = np.zeros((height, width), bool)
        canvas, tile = _overlap(self.alpha.shape, self.left_px, self.top_px, height, width)
        mask[canvas] = self.alpha[tile] >= 0.5
        return mask


def _overlap(
    tile: tuple[int, ...], left: int, top: int, height: int, width: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = max(x0, min(left + tile[1], width)), max(y0, min(top + tile[0], height))
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def draw_sprite(canvas: np.ndarray, sprite: Sprite) -> None:
    """Put the sprite and its shadow on a float32 H x W x 3 canvas, in place."""
    height, width = canvas.shape[:2]
    left, top = sprite.left_px + sprite.shadow_px[0], sprite.top_px + sprite.shadow_px[1]
    on_canvas, on_tile = _overlap(sprite.alpha.shape, left, top, height, width)
    canvas[on_canvas] *= 1 - sprite.shade[on_tile][..., None]
    on_canvas, on_tile = _overlap(sprite.alpha.shape, sprite.left_px, sprite.top_px, height, width)
    alpha = sprite.alpha[on_tile][..., None]
    canvas[on_canvas] += (sprite.colour[on_tile] - canvas[on_canvas]) * alpha


def random_sprite(
    rng: np.random.Generator,
    label: str,
    outline: Outline,
    centre_px: tuple[float, float],
    length_px: float,
    light: float,
) -> Sprite:
    """Turn, foreshorten, rasterise and paint an outline. `light` is the direction the light comes from, in radians."""
    matrix = _random_view(rng) * (length_px / 2)
    shadow_px = rng.uniform(0.01, 0.05) * length_px + 1
    margin = int(2 * shadow_px + 4)
    corners = np.concatenate(outline.solids) @ matrix
    low = np.floor(corners.min(0) + centre_px).astype(int) - margin
    size = np.ceil(corners.max(0) + centre_px).astype(int) + margin - low
    shift = np.asarray(centre_px) - low
    alpha = _rasterise(outline, matrix, shift, size)
    grooves = _grooves(outline, matrix, shift, size, max(1.0, length_px * 0.008))
    colour = _paint(rng, label, alpha, grooves, light, length_px)
    shade = blurred(alpha, shadow_px * rng.uniform(0.4, 0.9)) * rng.uniform(0.3, 0.65)
    offset = (int(-np.cos(light) * shadow_px), int(-np.sin(light) * shadow_px))
    return Sprite(label, centre_px, length_px, int(low[0]), int(low[1]), alpha, colour, shade, offset)


def _random_view(rng: np.random.Generator) -> np.ndarray:
    """2 x 2: mirror, tilt away from the viewer, turn in the plane."""
    turn, tilt = rng.uniform(0, 2 * np.pi, 2)
    squeeze = np.diag([1.0, rng.uniform(0.72, 1.0)])
    mirror = np.diag([1.0, rng.choice([-1.0, 1.0])])
    return mirror @ _rotation(tilt) @ squeeze @ _rotation(turn - tilt)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _rasterise(outline: Outline, matrix: np.ndarray, shift: np.ndarray, size: np.ndarray) -> np.ndarray:
    picture = Image.new("L", (int(size[0]) * SUPERSAMPLING, int(size[1]) * SUPERSAMPLING))
    draw = ImageDraw.Draw(picture)
    for fill, polygons in ((255, outline.solids), (0, outline.holes)):
        for polygon in polygons:
            points = (polygon @ matrix + shift) * SUPERSAMPLING - 0.5
            draw.polygon(points.ravel().tolist(), fill=fill)
    return np.asarray(picture.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def _grooves(outline: Outline, matrix: np.ndarray, shift: np.ndarray, size: np.ndarray, width_px: float) -> np.ndarray:
    picture = Image.new("L", (int(size[0]), int(size[1])))
    draw = ImageDraw.Draw(picture)
    for line in outline.creases:
        draw.line((line @ matrix + shift).ravel().tolist(), fill=255, width=round(width_px))
    return blurred(np.asarray(picture, dtype=np.float32) / 255, max(0.5, width_px / 2))


_METALS = np.array([[0.66, 0.67, 0.69], [0.42, 0.44, 0.47], [0.78, 0.62, 0.3], [0.62, 0.4, 0.26], [0.82, 0.83, 0.85]])
_LEAVES = np.array([[0.25, 0.45, 0.14], [0.4, 0.55, 0.18], [0.72, 0.42, 0.1], [0.65, 0.2, 0.1], [0.75, 0.62, 0.2]])


def _base_colour(rng: np.random.Generator, label: str) -> tuple[np.ndarray, float]:
    """Choose a colour (3,) and its metallic share (0..1): materials vary within a class, so that shape decides."""
    if label == "leaf":
        colour, metal = _LEAVES[int(rng.integers(len(_LEAVES)))], 0.0
    elif label == "clutter":
        return random_colour(rng, 0.2, 0.7, 0.08), 0.0
    elif label == "star" or rng.random() < 0.25:
        return random_colour(rng, 0.3, 0.75, 0.45), 0.3
    else:
        colour, metal = _METALS[int(rng.integers(len(_METALS)))], 1.0
    return (colour * rng.uniform(0.75, 1.15) + rng.uniform(-0.04, 0.04, 3)).astype(np.float32), metal


def _paint(
    rng: np.random.Generator, label: str, alpha: np.ndarray, grooves: np.ndarray, light: float, length_px: float
) -> np.ndarray:
    """Surface texture, rounded edges that catch the light, a gloss, grooves."""
    height, width = alpha.shape
    base, metal = _base_colour(rng, label)
    texture = noise(rng, height, width, coarsest_px=max(6, length_px / 6), octaves=4, stretch=1 + 3 * metal)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    slope = x * np.float32(np.cos(light)) + y * np.float32(np.sin(light))
    tone = 1 + rng.uniform(0.03, 0.1) * texture + rng.uniform(0.0, 0.25) * slope
    bevel = blurred(alpha, float(np.clip(length_px * 0.012, 0.8, 3.0)))
    steep_y, steep_x = np.gradient(bevel)
    facing = -(steep_x * np.float32(np.cos(light)) + steep_y * np.float32(np.sin(light))) * bevel
    tone = tone + facing * rng.uniform(1.2, 2.6) - grooves * rng.uniform(0.12, 0.35)
    band = np.exp(-(((slope - rng.uniform(-0.6, 0.6)) / rng.uniform(0.1, 0.35)) ** 2)) * metal * rng.uniform(0, 0.4)
    return np.clip(base * tone[..., None] + band[..., None], 0, 1).astype(np.float32)
