"""Labels that look drawn carelessly: found, named and drawn. They are remarks: nothing is left out because of them.

Shapes: H, W size of an image in pixels; N objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from training.datasets.coco import CocoSet
from training.datasets.coco_records import is_ignored
from training.datasets.problems import Problem
from training.datasets.sample import Sample

#: Two masks of one image that overlap by more than this IoU are one object drawn twice.
DUPLICATE_IOU = 0.9
#: A mask smaller than this share of its image, and than `SLIVER_PX` pixels, is a sliver.
SLIVER_SHARE, SLIVER_PX = 1e-4, 64
_CELL_PX, _CAPTION_PX, _MARGIN, _LEAST_MARGIN_PX = (160, 160), 14, 0.25, 10


@dataclass(frozen=True, slots=True)
class Careless:
    """An object that looks drawn carelessly: its number in its sample, and what is to be looked at."""

    number: int
    problem: Problem


def careless_labels(sample: Sample, samples: Any, index: int) -> Iterator[Careless]:
    """Find objects of a sample that look drawn carelessly: duplicates, slivers, and boxes drawn as polygons."""
    packed = [coco_mask.encode(np.asfortranarray(mask_hw, np.uint8)) for mask_hw in sample.masks]
    overlap = np.asarray(coco_mask.iou(packed, packed, [0] * len(packed))).reshape(len(packed), len(packed))
    smallest_px = min(SLIVER_PX, SLIVER_SHARE * sample.image.shape[0] * sample.image.shape[1])
    labels = [samples.class_names[label] for label in sample.classes]
    objects = np.flatnonzero(~sample.crowd)
    remarks: list[tuple[int, str, str]] = []
    for n in objects.tolist():
        for m in objects[(objects > n) & (overlap[n, objects] > DUPLICATE_IOU)].tolist():
            detail = f"{labels[m]!r} lies on {labels[n]!r} with IoU {overlap[n, m]:.2f}; is it one object, drawn twice?"
            remarks.append((m, "duplicate object", detail))
        area_px = int(sample.masks[n].sum())
        if area_px < smallest_px:
            detail = f"{labels[n]!r} has {area_px} pixels, fewer than {smallest_px:.3g}; is it a slip of the mouse?"
            remarks.append((n, "sliver", detail))
    boxes = _boxes_drawn_as_polygons(samples, sample)
    places = object_places(samples, sample) if remarks or boxes else []
    for place, outline in boxes.items():
        if place in places:
            detail = f"its polygon is the rectangle {outline}; draw the outline"
            remarks.append((places.index(place), "box drawn as polygon", detail))
    file = str(getattr(samples, "annotations", f"sample {index}"))
    for n, kind, detail in remarks:
        yield Careless(n, Problem(file, f"image {sample.image_id}, {places[n]}", kind, detail, repaired=True))


def _boxes_drawn_as_polygons(samples: Any, sample: Sample) -> dict[str, Any]:
    """Place and outline of each object of a COCO file whose polygon is a box."""
    if not isinstance(samples, CocoSet):
        return {}
    drawn = samples.records.annotations[sample.image_id]
    boxes = [entry for entry in drawn if not is_ignored(entry) and _is_box(entry["segmentation"])]
    return {entry["place"]: entry["segmentation"][0] for entry in boxes}


def _is_box(segmentation: Any) -> bool:
    """Whether a segmentation is one polygon with four corners and sides along the axes."""
    if not isinstance(segmentation, list) or len(segmentation) != 1:
        return False
    corners: np.ndarray = np.array(segmentation[0], float).reshape(-1, 2)
    if len(corners) == 5 and (corners[0] == corners[4]).all():
        corners = corners[:4]
    sides = np.roll(corners, -1, 0) - corners
    return len(corners) == 4 and bool(((sides == 0).sum(1) == 1).all())


def object_places(samples: Any, sample: Sample) -> list[str]:
    """Name the objects of a sample as its set does (an annotation, a region), else by their numbers."""
    if hasattr(samples, "object_places"):
        places: list[str] = samples.object_places(sample)
        return places
    return [f"object {n}" for n in range(len(sample.masks))]


def object_picture(image: np.ndarray, mask_hw: np.ndarray) -> Image.Image:
    """An object and a margin around it in the size of a cell, its outline in red."""
    inner = np.pad(mask_hw, 1)
    inside = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    margin = int(_MARGIN * max(len(rows), len(columns))) + _LEAST_MARGIN_PX
    top, left = max(rows[0] - margin, 0), max(columns[0] - margin, 0)
    shown = slice(top, rows[-1] + margin + 1), slice(left, columns[-1] + margin + 1)
    drawn = image[shown].copy()
    drawn[(mask_hw & ~inside)[shown]] = (255, 0, 0)
    picture = Image.fromarray(drawn)
    scale = min(_CELL_PX[0] / picture.width, _CELL_PX[1] / picture.height)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    return picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))), how)


def save_pictures(pictures: Sequence[tuple[Image.Image, str, str]], file: Path, columns: int = 5) -> None:
    """Write small pictures side by side, each with two lines of text above it."""
    width, height = _CELL_PX[0], _CELL_PX[1] + 2 * _CAPTION_PX
    sheet = Image.new("RGB", (columns * width, max(1, -(-len(pictures) // columns)) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, *lines) in enumerate(pictures):
        left, top = number % columns * width, number // columns * height
        for line, text in enumerate(lines):
            shown = text[:26].encode("latin-1", "replace").decode("latin-1")
            draw.text((left + 3, top + line * _CAPTION_PX), shown, fill="black")
        sheet.paste(picture, (left, top + 2 * _CAPTION_PX))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
