"""Photographs outlined with the VGG Image Annotator (VIA): ``via_region_data.json`` beside the images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.images import ImageError, read_header
from training.datasets.coco import CocoSet

FILE = "via_region_data.json"


@dataclass
class ViaSet(CocoSet):
    """A folder of VIA's; `annotations` is its JSON file, `images` the folder, every region of one class.

    VIA 1 keeps an image's regions in a mapping, VIA 2 in a list. Polygons and rectangles are read; other shapes are
    reported. Coordinates are pixels of the image as it is shown.

    Raises:
        FileNotFoundError, BadAnnotationError: as `CocoSet`; here a missing image is found when the set is opened,
            since the file does not hold the sizes.
        ValueError: the file is no VIA file.
    """

    label: str = "object"

    def _records(self) -> dict[str, Any]:
        images: list[dict[str, Any]] = []
        found: list[dict[str, Any]] = []
        for key, entry in sorted(self._entries().items()):
            path = self.images / str(entry["filename"])
            if not path.is_file() and self.missing == "fatal":
                raise FileNotFoundError(f"{key} of {self.annotations} is missing: {path}")
            number = len(images) + 1
            width, height = _size_px(path) if path.is_file() else (None, None)
            images.append({"id": number, "file_name": path.name, "width": width, "height": height})
            for index, region in enumerate(_regions(entry)):
                outline = _outline(region.get("shape_attributes", {}))
                if outline is None:
                    shape = region.get("shape_attributes", {}).get("name")
                    self.problems.note(
                        self.annotations, f"{key} region {index}", "unknown shape", f"{shape!r}; skipped"
                    )
                    continue
                found.append(_annotation(len(found) + 1, number, outline))
        return {"images": images, "annotations": found, "categories": [{"id": 1, "name": self.label}]}

    def _entries(self) -> dict[str, dict[str, Any]]:
        if not self.annotations.is_file():
            raise FileNotFoundError(f"no annotation file {self.annotations}; give via:FOLDER[:LABEL]")
        try:
            entries = json.loads(self.annotations.read_bytes())
        except ValueError as error:
            raise ValueError(f"{self.annotations} is no JSON: {error}") from error
        if isinstance(entries, dict):
            entries = entries.get("_via_img_metadata", entries)  # a whole project of VIA 2
        if not isinstance(entries, dict) or not all(
            isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in entries.values()
        ):
            raise ValueError(f"{self.annotations} is no VIA file: each entry needs a filename and regions")
        return entries


def _regions(entry: dict[str, Any]) -> list[dict[str, Any]]:
    regions = entry["regions"]
    return list(regions.values()) if isinstance(regions, dict) else list(regions)


def _outline(shape: dict[str, Any]) -> list[float] | None:
    """x, y, x, y ... of a polygon or rectangle."""
    if shape.get("name") == "polygon":
        return [
            float(value) for pair in zip(shape["all_points_x"], shape["all_points_y"], strict=True) for value in pair
        ]
    if shape.get("name") == "rect":
        left, top = float(shape["x"]), float(shape["y"])
        right, bottom = left + float(shape["width"]), top + float(shape["height"])
        return [left, top, right, top, right, bottom, left, bottom]
    return None


def _annotation(number: int, image: int, outline: list[float]) -> dict[str, Any]:
    # No box: pycocotools needs none, and `usable` would call outlines that leave the image by a pixel bad.
    area = abs(sum(a * d - b * c for a, b, c, d in _edges(outline))) / 2
    return {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "area": area, "segmentation": [outline]}


def _edges(outline: list[float]) -> list[tuple[float, float, float, float]]:
    points = list(zip(outline[::2], outline[1::2], strict=True))
    return [(*one, *other) for one, other in zip(points, points[1:] + points[:1], strict=True)]


def _size_px(path: Path) -> tuple[int | None, int | None]:
    """Width and height as shown; None where the picture cannot be read: that is said when it is asked for."""
    try:
        height, width = read_header(path).upright_hw
    except (ImageError, OSError):
        return None, None
    return width, height
