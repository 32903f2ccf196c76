"""Labels that look drawn carelessly: found, named and drawn. They are remarks: nothing is left out because of them.

Shapes: H, W size of an image in pixels; N objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.instance import iou_matrix
from training.datasets.coco import CocoSet
from training.datasets.coco_records import is_ignored
from training.datasets.pictures import captioned, close_up, in_grid, save_picture
from training.datasets.problems import Problem
from training.datasets.sample import Sample

#: Two masks of one image that overlap by more than this IoU are one object drawn twice.
DUPLICATE_IOU = 0.9
#: A mask smaller than this share of its image, and than `SLIVER_PX` pixels, is a sliver.
SLIVER_SHARE, SLIVER_PX = 1e-4, 64
_CELL_PX = 160


@dataclass(frozen=True, slots=True)
class Careless:
    """An object that looks drawn carelessly: its number in its sample, and what is to be looked at."""

    number: int
    problem: Problem


def careless_labels(sample: Sample, samples: Any, index: int) -> Iterator[Careless]:
    """Find objects of a sample that look drawn carelessly: duplicates, slivers, and boxes drawn as polygons."""
    overlap = iou_matrix(list(sample.masks), list(sample.masks))
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
    """An object and a margin around it in a small square, its outline in red."""
    margin_px = int(0.25 * max(np.ptp(np.nonzero(mask_hw), axis=1))) + 10
    return close_up(image, [(mask_hw, (255, 0, 0))], margin_px, _CELL_PX)


def save_pictures(pictures: Sequence[tuple[Image.Image, str, str]], file: Path) -> None:
    """Write small pictures side by side, each with two lines of text above it."""
    save_picture(in_grid([captioned(*entry) for entry in pictures], columns=5), file)
