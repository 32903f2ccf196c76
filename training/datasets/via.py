"""Photographs outlined with the VGG Image Annotator (VIA): ``via_region_data.json`` or another JSON beside them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.images import ImageError, read_header
from training.datasets.coco import CocoSet, file_names, is_file
from training.metrics.coco_schema import is_number

_FILE = "via_region_data.json"
_ROUND_POINTS = 180  # corners of the outline of a circle or an ellipse


def annotation_file(folder: Path) -> Path:
    """The file of outlines in a folder: by VIA 1's name, or the only JSON file there is."""
    json_files = sorted(folder.glob("*.json"))
    return json_files[0] if len(json_files) == 1 else folder / _FILE


@dataclass
class ViaSet(CocoSet):
    """A VIA folder as a set of one class; `annotations` is its JSON file, `images` the folder.

    VIA 1 keeps an image's regions in a mapping, VIA 2 in a list. Polygons, rectangles, circles and ellipses are read;
    other shapes are reported, and their places ignored. Coordinates are pixels of the image as it is shown.

    Raises:
        FileNotFoundError, BadAnnotationError: as `CocoSet`; here a missing image is found when the set is opened,
            since the file does not hold the sizes.
        ValueError: the file is no VIA file.
    """

    label: str = "object"

    def _records(self) -> dict[str, Any]:
        images: dict[str, dict[str, Any]] = {}
        annotations: list[dict[str, Any]] = []
        entries = self._entries()
        for key, entry in sorted(entries.items()):
            name = entry["filename"]
            paths = [self.images / form for form in file_names(name)]
            path = next(filter(is_file, paths), paths[0])
            is_there = is_file(path)
            if not is_there and self.missing == "fatal":
                raise FileNotFoundError(f"{key} of {self.annotations} is missing: {path}")
            if name in images:
                detail = f"{name} is listed before; the regions of both are read"
                self.problems.note(self.annotations, key, "repeated image", detail, repaired=True)
            else:
                size = entry.get("size")
                if is_there and isinstance(size, int) and 0 < size != path.stat().st_size:
                    detail = (
                        f"{name} has {path.stat().st_size} bytes, it was outlined with {size}; look at the outlines"
                    )
                    self.problems.note(self.annotations, key, "other file", detail, repaired=True)
                width, height = _size_px(path) if is_there else (None, None)
                images[name] = {"id": len(images) + 1, "file_name": name, "width": width, "height": height}
            for index, region in enumerate(_regions(entry)):
                self._add(annotations, images[name]["id"], f"{key} region {index}", region)
        self._note_classes(entries.values())
        category = {"id": 1, "name": self.label}
        return {"images": [*images.values()], "annotations": annotations, "categories": [category]}

    def _add(self, annotations: list[dict[str, Any]], image_id: int, place: str, region: Any) -> None:
        """Append the annotation of a region, or note why it has none."""
        shape = region.get("shape_attributes") if isinstance(region, dict) else None
        shape = shape if isinstance(shape, dict) else {}
        points = _outline(shape)
        # No box: pycocotools needs none, and outlines may leave the image by a pixel.
        annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0}
        if points is not None:
            annotations.append(annotation | {"segmentation": [points.ravel().tolist()]})
            return
        extent = _extent(shape)
        consequence = "left out" if extent is None else "an ignored region"
        self.problems.note(self.annotations, place, "unknown shape", f"{shape.get('name')!r:.40}; {consequence}")
        if extent is not None:
            left, top, right, bottom = extent
            corners = [left, top, right, top, right, bottom, left, bottom]
            annotations.append(annotation | {"segmentation": [corners], "iscrowd": 1})

    def _note_classes(self, entries: Iterable[dict[str, Any]]) -> None:
        """Note region attributes with several values: all regions are read as one class."""
        values: dict[str, Counter[str]] = {}
        for region in (region for entry in entries for region in _regions(entry)):
            attributes = region.get("region_attributes") if isinstance(region, dict) else None
            for name, value in attributes.items() if isinstance(attributes, dict) else ():
                if isinstance(value, str) and value:
                    values.setdefault(name, Counter())[value] += 1
        for name, counts in values.items():
            if len(counts) > 1:
                common_values = ", ".join(f"{count} {value!r:.40}" for value, count in counts.most_common(5))
                detail = f"regions have {len(counts)} values, {common_values}; all are read as {self.label!r}"
                self.problems.note(self.annotations, f"attribute {name!r:.40}", "one class", detail, repaired=True)

    def _entries(self) -> dict[str, dict[str, Any]]:
        entries = self._content(", nor any one JSON file beside it; give via:FOLDER[:LABEL]")
        if isinstance(entries, dict):
            entries = entries.get("_via_img_metadata", entries)  # a whole project of VIA 2
        if not isinstance(entries, dict):
            raise ValueError(f"{self.annotations} is no VIA file: each entry needs a filename and regions")
        for key, entry in entries.items():
            name = entry.get("filename") if isinstance(entry, dict) else None
            if not isinstance(name, str) or not name or not isinstance(entry.get("regions"), dict | list):
                entry_text = f"{key!r:.60} is {entry!r:.60}"
                raise ValueError(
                    f"{self.annotations} is no VIA file: {entry_text}; each entry needs a filename and regions"
                )
        return entries


def _regions(entry: dict[str, Any]) -> list[Any]:
    regions = entry["regions"]
    return list(regions.values()) if isinstance(regions, dict) else regions


def _numbers(shape: dict[str, Any], *names: str) -> list[float] | None:
    """Values of a shape; None where one is no finite number."""
    values = [shape.get(name) for name in names]
    return [float(value) for value in values] if all(map(is_number, values)) else None  # type: ignore[arg-type]


def _points(shape: dict[str, Any]) -> np.ndarray | None:
    """The corners (N, 2) of a polygon or polyline; None where they are no points."""
    columns = [shape.get("all_points_x"), shape.get("all_points_y")]
    for column in columns:
        if not isinstance(column, list) or not column or not all(map(is_number, column)):
            return None
    if len(columns[0]) != len(columns[1]):  # type: ignore[arg-type]
        return None
    return np.array(columns, float).T


def _outline(shape: dict[str, Any]) -> np.ndarray | None:
    """Corners (N, 2) of what a shape encloses; None where it is no outline."""
    name = shape.get("name")
    if name == "polygon":
        return _points(shape)
    if name == "rect" and (numbers := _numbers(shape, "x", "y", "width", "height")):
        x, y, width, height = numbers
        return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
    if name == "circle" and (numbers := _numbers(shape, "cx", "cy", "r")):
        return _ellipse(numbers[0], numbers[1], numbers[2], numbers[2], 0.0)
    if name == "ellipse" and (numbers := _numbers({"theta": 0} | shape, "cx", "cy", "rx", "ry", "theta")):
        return _ellipse(*numbers)
    return None


def _ellipse(x: float, y: float, radius_x: float, radius_y: float, turn: float) -> np.ndarray:
    """Corners of an ellipse turned clockwise by `turn` radians."""
    around = np.linspace(0, 2 * math.pi, _ROUND_POINTS, endpoint=False)
    along, across = radius_x * np.cos(around), radius_y * np.sin(around)
    cosine, sine = math.cos(turn), math.sin(turn)
    return np.stack([x + along * cosine - across * sine, y + along * sine + across * cosine], axis=1)


def _extent(shape: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom of the place of a shape that encloses nothing; None where it is not known."""
    points = _points(shape)
    if points is None and (numbers := _numbers(shape, "cx", "cy")):
        points = np.array([numbers])
    if points is None:
        return None
    (left, top), (right, bottom) = np.floor(points.min(0)), np.ceil(points.max(0))
    return float(left), float(top), float(max(right, left + 1)), float(max(bottom, top + 1))


def _size_px(path: Path) -> tuple[int | None, int | None]:
    """Width and height, upright; None where the picture cannot be read: reading its sample reports that."""
    try:
        height, width = read_header(path).upright_hw
    except (ImageError, OSError):
        return None, None
    return width, height
