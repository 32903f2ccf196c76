"""Photographic-looking backgrounds without photographs: noise, weave, planks, bokeh, and a lamp over them.

Images are float32 H x W x 3 in [0, 1]; noise is float32 H x W of about zero mean and unit deviation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bicubic resize of a float32 H x W array."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def blurred(image: np.ndarray, radius_px: float) -> np.ndarray:
    """Gaussian blur of a float H x W array in [0, 1] (8 bits inside: fast, and fine enough to shade with)."""
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
