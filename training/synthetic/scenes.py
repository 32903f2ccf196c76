"""Generated scenes: overlapping thin and jagged objects with exact visible masks, from a seed alone.

The same seed gives the same scene, pixel for pixel. The splits use disjoint ranges of seeds (`scene_seed`). As files
scenes are PNG images and one COCO annotation file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from pycocotools import mask as rle

from training.synthetic.backgrounds import background, noise
from training.synthetic.rendering import Sprite, draw_sprite, random_sprite
from training.synthetic.shapes import CLUTTER, SHAPES

CLASSES: tuple[str, ...] = tuple(SHAPES)
VERSION = 2  # raise it with every change that changes pictures: stored scenes are told apart by it
SPLITS = {"train": 0, "val": 1_000_000_000, "demo": 2_000_000_000}
_SPLIT_SIZE = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Scene:
    """One generated picture and what is on it.

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
    placed = _place(rng, width, height, light, least_visible, least_area_px)
    for sprite in _clutter(rng, width, height, light):
        draw_sprite(canvas, sprite)
    for sprite, _ in reversed(placed):
        draw_sprite(canvas, sprite)
    return Scene(_photographed(rng, canvas), tuple((sprite.label, visible) for sprite, visible in placed))


def _place(
    rng: np.random.Generator, width: int, height: int, light: float, least_visible: float, least_area_px: int
) -> list[tuple[Sprite, np.ndarray]]:
    """Lay objects down from the front: what lies in front is known when the next one is tried."""
    placed: list[tuple[Sprite, np.ndarray]] = []
    covered = np.zeros((height, width), bool)
    wanted, tries = int(rng.integers(2, 6)), 0
    while len(placed) < wanted and tries < 3 * wanted:
        tries += 1
        label = CLASSES[int(rng.integers(len(CLASSES)))]
        length_px = _length_px(rng, label, min(width, height))
        centre = _centre(rng, width, height, placed)
        sprite = random_sprite(rng, label, SHAPES[label](rng), centre, length_px, light)
        mask = sprite.mask(height, width)
        visible = mask & ~covered
        shown = int(visible.sum())
        if shown >= max(least_area_px, least_visible * sprite.area_px):
            placed.append((sprite, visible))
            covered |= mask
    return placed


def _length_px(rng: np.random.Generator, label: str, side_px: int) -> float:
    """From a fifth of the picture's short side to all of it; slim tools may be longer."""
    if rng.random() < 0.2:
        return float(rng.uniform(0.2, 0.38)) * side_px
    longest = 1.25 if label in ("key", "fork", "spanner") else 1.0
    return float(rng.uniform(0.38, longest)) * side_px


def _centre(
    rng: np.random.Generator, width: int, height: int, placed: list[tuple[Sprite, np.ndarray]]
) -> tuple[float, float]:
    """Anywhere, or close to an object that is there already: overlaps are what makes it hard."""
    if placed and rng.random() < 0.35:
        sprite = placed[int(rng.integers(len(placed)))][0]
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
    """What a camera makes of it: a slight blur, exposure, a colour cast, sensor noise, a tone curve."""
    height, width = canvas.shape[:2]
    soft = rng.uniform(0.25, 0.75)
    picture = Image.fromarray((np.clip(canvas, 0, 1) * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(soft))
    canvas = np.asarray(picture, dtype=np.float32) / 255
    canvas = canvas * rng.uniform(0.85, 1.15) * rng.uniform(0.95, 1.05, 3).astype(np.float32)
    grain = rng.standard_normal((height, width, 3), dtype=np.float32) * rng.uniform(0.004, 0.022)
    canvas += grain + noise(rng, height, width, coarsest_px=2, octaves=1)[..., None] * 0.004
    curve = ((np.arange(256) / 255) ** rng.uniform(0.85, 1.15) * 255 + 0.5).astype(np.uint8)
    return curve[(np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)]


def scene_contact_sheet(scenes: list[Scene], columns: int = 4, *, outlines: bool = False) -> Image.Image:
    """Scenes of equal size side by side; `outlines` tints every visible mask."""
    height, width = scenes[0].image.shape[:2]
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for index, scene in enumerate(scenes):
        picture = _tinted(scene) if outlines else scene.image
        sheet.paste(Image.fromarray(picture), (index % columns * width, index // columns * height))
    return sheet


def _tinted(scene: Scene) -> np.ndarray:
    rng = np.random.default_rng(0)
    picture = scene.image.astype(np.float32)
    for _, mask in scene.instances:
        picture[mask] = picture[mask] * 0.45 + rng.uniform(60, 255, 3) * 0.55
    return picture.astype(np.uint8)


@dataclass(frozen=True, slots=True)
class WrittenScenes:
    """What lies on the disk: image files, their annotation file, and how many objects it lists."""

    images: tuple[Path, ...]
    annotations: Path
    instances: int


def write_scenes(
    folder: Path, split: str, indices: Sequence[int], *, width: int = 384, height: int = 288, sheet: Path | None = None
) -> WrittenScenes:
    """Write scenes into ``folder/images`` and ``folder/instances.json``; optionally a contact sheet PNG."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    drawn: list[Scene] = []
    images: list[Path] = []
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in indices:
        scene = generate_scene(scene_seed(split, index), width=width, height=height)
        path = folder / "images" / f"{split}-{index:06d}.png"
        Image.fromarray(scene.image).save(path)
        images.append(path)
        records.append({"id": index, "file_name": path.name, "height": height, "width": width})
        annotations += [_annotation(index, label, mask) for label, mask in scene.instances]
        if sheet is not None:
            drawn.append(scene)
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": records, "annotations": annotations, "categories": categories}))
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        scene_contact_sheet(drawn).save(sheet)
    return WrittenScenes(tuple(images), path, len(annotations))


def _annotation(image_id: int, label: str, mask_hw: np.ndarray) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(mask_hw, dtype=np.uint8))
    segmentation = {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
    measures = {"area": int(rle.area(encoded)), "bbox": rle.toBbox(encoded).tolist(), "iscrowd": 0}
    return {"image_id": image_id, "category_id": CLASSES.index(label) + 1, "segmentation": segmentation} | measures
