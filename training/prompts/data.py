"""Objects of COCO files as views to learn prompts from: images decoded once, windows and prompts drawn at random.

Shape shorthand: S side of a view.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_dilation, gaussian_filter, shift

from model.images import turn_upright
from model.instance import box_of
from model.prompts.views import View, view_of_box, view_of_image
from training.datasets.coco import CocoSet
from training.datasets.coco_records import is_ignored
from training.datasets.sample import ImageLeftOutError, Sample, usable_samples
from training.evaluation.coco_format import encode

#: Images are kept in memory with their longer side reduced to this.
LONGEST_SIDE_PX = 640
LEAST_AREA_PX = 80.0
#: Objects so near each other touch.
TOUCH_PX = 3
#: So much of an object must be left to be seen when another is pasted over it.
LEAST_VISIBLE = 0.6


@dataclass(frozen=True, slots=True)
class MaskedObject:
    """One object: the image's number in its set, its mask as compressed RLE, its box, and how often it is drawn."""

    image: int
    rle: dict[str, Any]
    box_xyxy: tuple[float, float, float, float]
    weight: float

    def mask(self) -> np.ndarray:
        """Bool H x W."""
        return coco_mask.decode(self.rle).astype(bool)


@dataclass(slots=True)
class ObjectSet:
    """Objects with their images in memory."""

    images: list[np.ndarray]
    objects: list[MaskedObject]
    names: list[str]

    def objects_of_image(self, image: int) -> list[MaskedObject]:
        """The objects of one image; those of an image stand side by side."""
        start = bisect_left(self.objects, image, key=lambda item: item.image)
        return self.objects[start : bisect_right(self.objects, image, key=lambda item: item.image)]


@dataclass(frozen=True, slots=True)
class Source:
    """A COCO file with its images' folder.

    Attributes:
        weights: how often an object is drawn, by the annotation's `source` and then its `kind`; 1 where not named.
        most_objects: of an image; a random choice of them is kept.
        factor: of all weights of this file.
    """

    annotations: Path
    images: Path
    weights: dict[str, float]
    most_objects: int = 12
    factor: float = 1.0


def load_objects(sources: Sequence[Source]) -> ObjectSet:
    """Decode all images of COCO files and list their objects; crowds and specks are left out.

    The files are read as every data set is: what cannot be used is named in the log and left out.
    """
    rng = np.random.default_rng(0)
    loaded = ObjectSet([], [], [])
    for source in sources:
        samples = CocoSet(source.annotations, source.images, missing="skip")
        for image_id in samples.records.images:
            annotations = [entry for entry in samples.records.annotations[image_id] if not is_ignored(entry)]
            if not annotations or not samples.image_path(image_id).is_file():
                continue
            if len(annotations) > source.most_objects:
                numbers = rng.choice(len(annotations), source.most_objects, replace=False)
                annotations = [annotations[number] for number in numbers]
            with contextlib.suppress(ImageLeftOutError):
                _add(loaded, source, samples, image_id, annotations)
    return loaded


def objects_of(samples: Sequence[Sample], *, least_area_px: float = 1.0) -> ObjectSet:
    """The objects of any data set, at the images' own size; crowds are left out."""
    loaded = ObjectSet([], [], [])
    for _, sample in usable_samples(samples):
        loaded.images.append(sample.image)
        loaded.names.append(str(sample.image_id))
        for mask, is_crowd in zip(sample.masks, sample.crowd, strict=True):
            if not is_crowd and mask.sum() >= least_area_px:
                loaded.objects.append(_masked_object(len(loaded.images) - 1, mask, 1.0))
    return loaded


def _masked_object(image: int, mask_hw: np.ndarray, weight: float) -> MaskedObject:
    left, top, right, bottom = map(float, box_of(mask_hw))
    return MaskedObject(image, encode(mask_hw), (left, top, right, bottom), weight)


def _add(
    loaded: ObjectSet, source: Source, samples: CocoSet, image_id: int, annotations: Sequence[dict[str, Any]]
) -> None:
    record, pixels = samples.records.images[image_id], samples.picture(image_id)
    truth_hw, orientation = samples.drawn_on(image_id, pixels)
    image = Image.fromarray(pixels)
    image.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.BILINEAR)
    scale = image.width / pixels.shape[1], image.height / pixels.shape[0]
    objects = []
    for annotation in annotations:
        drawn_hw = samples.mask_of(annotation, truth_hw)
        if drawn_hw is None or is_ignored(annotation):
            continue
        mask_hw = turn_upright(drawn_hw, orientation)
        if image.size != pixels.shape[1::-1]:
            mask_image = Image.fromarray(mask_hw.astype(np.uint8))
            mask_hw = np.asarray(mask_image.resize(image.size, Image.Resampling.BILINEAR, reducing_gap=None)) > 0
        if not mask_hw.any() or mask_hw.sum() < LEAST_AREA_PX * scale[0] * scale[1]:
            continue
        weight = source.factor * source.weights.get(str(annotation.get("source", record.get("source", ""))), 1.0)
        weight *= source.weights.get(str(annotation.get("kind", "")), 1.0)
        objects.append(_masked_object(len(loaded.images), mask_hw, weight))
    if objects:
        loaded.images.append(np.asarray(image))
        loaded.objects += objects
        loaded.names.append(str(samples.image_path(image_id)))


def merged(item: MaskedObject, objects: ObjectSet, rng: np.random.Generator) -> MaskedObject:
    """An object together with another one of its image that touches it; itself where none does."""
    x0, y0, x1, y1 = item.box_xyxy
    neighbours = [
        neighbour
        for neighbour in objects.objects_of_image(item.image)
        if neighbour is not item
        and neighbour.box_xyxy[0] <= x1 + TOUCH_PX
        and neighbour.box_xyxy[2] >= x0 - TOUCH_PX
        and neighbour.box_xyxy[1] <= y1 + TOUCH_PX
        and neighbour.box_xyxy[3] >= y0 - TOUCH_PX
    ]
    if not neighbours:
        return item
    mask, neighbour_mask = item.mask(), neighbours[int(rng.integers(len(neighbours)))].mask()
    if not (binary_dilation(mask, iterations=TOUCH_PX) & neighbour_mask & ~mask).any():
        return item
    return _masked_object(item.image, mask | neighbour_mask, item.weight)


def jittered_box(
    box_xyxy: Sequence[float], share: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A box whose edges moved by up to `share` of its width or height."""
    x0, y0, x1, y1 = box_xyxy
    width, height = x1 - x0, y1 - y0
    left, top, right, bottom = rng.uniform(-share, share, 4)
    return x0 + left * width, y0 + top * height, x1 + right * width, y1 + bottom * height


def box_view(
    image_hw: tuple[int, int], box_xyxy: Sequence[float], side: int, rng: np.random.Generator, *, by_clicks: bool
) -> View:
    """A window to learn from: around the box as it will be at use, or as loose as an annotator's clicks leave it."""
    if by_clicks and rng.random() < 0.35:
        return view_of_image(image_hw, side)
    margin = rng.uniform(1.2, 2.5) if by_clicks else rng.uniform(1.25, 1.6)
    view = view_of_box(box_xyxy, side, margin)
    x0, y0, x1, y1 = view.box_xyxy
    slack = 0.15 if by_clicks else 0.04
    dx, dy = rng.uniform(-slack, slack, 2) * (x1 - x0, y1 - y0)
    return View((x0 + dx, y0 + dy, x1 + dx, y1 + dy), side)


def part_view(box_xyxy: Sequence[float], side: int, rng: np.random.Generator) -> View:
    """A window over a part of an object, as a correction of a large one is looked at."""
    x0, y0, x1, y1 = box_xyxy
    size = rng.uniform(0.35, 0.9) * np.sqrt((x1 - x0) * (y1 - y0))
    x, y = rng.uniform(x0, x1), rng.uniform(y0, y1)
    return view_of_box((x - size / 2, y - size / 2, x + size / 2, y + size / 2), side, margin=1.0)


def turned_box(
    box_xyxy: tuple[float, float, float, float], side: float, quarters: int
) -> tuple[float, float, float, float]:
    """A box in a square view of `side` that is turned against the clock by quarters of a circle, as numpy's rot90."""
    for _ in range(quarters % 4):
        x0, y0, x1, y1 = box_xyxy
        box_xyxy = y0, side - x1, y1, side - x0
    return box_xyxy


def recoloured(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and colour of a view changed a little; uint8 S x S x 3."""
    values = pixels.astype(np.float32)
    values = (values - 118) * rng.uniform(0.7, 1.35) + 118 + rng.uniform(-30, 30)
    values *= rng.uniform(0.9, 1.1, 3).astype(np.float32)
    if rng.random() < 0.1:
        values[:] = values.mean(2, keepdims=True)
    return np.clip(values, 0, 255).astype(np.uint8)


def degraded(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A view as a worse photograph shows it: darkened or lightened, out of focus or noisy; uint8 S x S x 3."""
    values = 255 * (pixels.astype(np.float32) / 255) ** np.exp(rng.uniform(-0.6, 0.9))
    if rng.random() < 0.5:
        values = gaussian_filter(values, (rng.uniform(0.3, 2.0), rng.uniform(0.3, 2.0), 0))
    if rng.random() < 0.5:
        values += rng.normal(0, rng.uniform(2, 12), values.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


def elsewhere(
    pixels: np.ndarray, mask: np.ndarray, background: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A view's object cut out and pasted onto another view: pixels (S, S, 3) uint8, its mask (S, S) as it was.

    Copy-paste (Ghiasi et al., CVPR 2021): with few photographs an object would be known by its surroundings.
    """
    return _blended(background, pixels, mask, rng), mask


def covered(
    pixels: np.ndarray, mask: np.ndarray, pasted: np.ndarray, pasted_mask: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A view with another view's object pasted over it: pixels, and what is left of the mask to be seen.

    The view as it was when less than `LEAST_VISIBLE` of its object would be left.
    """
    dy, dx = rng.integers(-mask.shape[0] // 2, mask.shape[0] // 2, 2).tolist()
    pasted = shift(pasted, (dy, dx, 0), order=0)
    pasted_mask = shift(pasted_mask.astype(np.uint8), (dy, dx), order=0).astype(bool)
    visible = mask & ~pasted_mask
    if visible.sum() < LEAST_VISIBLE * mask.sum():
        return pixels, mask
    return _blended(pixels, pasted, pasted_mask, rng), visible


def _blended(below: np.ndarray, above: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One view over another within a mask, whose rim is as soft as a lens draws it."""
    cover = gaussian_filter(mask.astype(np.float32), rng.uniform(0.3, 1.2))[:, :, None]
    return (below * (1 - cover) + above * cover + 0.5).astype(np.uint8)
