"""Reading a COCO file: each record is used, repaired, or reported with file, field and value.

Shapes: H, W size of an image as its record states it.

Nothing is dropped in silence. An object whose mask cannot be read but whose box can is kept as a region to ignore
(``iscrowd``), so that it does not become background.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.datasets.sample import Problems
from training.metrics.boundary import well_formed
from training.metrics.coco_schema import is_box, is_integer, is_number, is_size, short

Record = dict[str, Any]
#: Coordinates beyond this are refused: rasterising an edge takes memory in proportion to its length.
LARGEST_COORDINATE_PX = 1e6
_SLACK_PX = 1.0  # COCO's own boxes leave their images by rounding


@dataclass
class CocoRecords:
    """The usable records of a file.

    Attributes:
        images: by id; `height` and `width` are None where the file does not say.
        annotations: of each image, in the order of the file. `bbox` is what the file says, `box_inside` the part of it
            in the image or None; `ignored` is the box [x, y, w, h] of a region whose mask cannot be read, else None.
        categories: one for each category id, by rising id.
        category_ids: one of each class. class_names: in their order.
        class_of: category id -> class.
        left_out: ids of images whose annotations cannot be known.
    """

    images: dict[int, Record] = field(default_factory=dict)
    annotations: dict[int, list[Record]] = field(default_factory=dict)
    categories: list[Record] = field(default_factory=list)
    category_ids: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    class_of: dict[int, int] = field(default_factory=dict)
    left_out: set[int] = field(default_factory=set)
    _text_ids: dict[str, int] = field(default_factory=dict, repr=False)

    def id_of(self, value: Any) -> int | None:
        """An id as an integer: digits are read as a number, other text gets a number of its own below zero."""
        number = _whole(value)
        if number is None and isinstance(value, str) and value.strip():
            return self._text_ids.setdefault(value.strip(), -1 - len(self._text_ids))
        return number


def is_ignored(annotation: Record) -> bool:
    """Whether an annotation is neither object nor background: a crowd, a mere box, or of no known class."""
    return bool(
        annotation["iscrowd"]
        or annotation["ignored"] is not None
        or annotation.get("every_class")
        or annotation.get("box_only")
    )


def read_records(dataset: Any, file: Path, problems: Problems, *, masks: bool = True) -> CocoRecords:
    """Check a parsed COCO file; without `masks` objects are boxes, and segmentations are not read.

    Raises:
        ValueError: it is no COCO file, or has no categories that can be used.
    """
    if not isinstance(dataset, dict) or not {"images", "categories"} <= dataset.keys():
        raise ValueError(f"{file} is no COCO file: it needs images, annotations and categories")
    for name in ("images", "categories", "annotations"):
        if not isinstance(dataset.get(name, []), list) and not (name == "annotations" and dataset[name] is None):
            raise ValueError(f"{file}: {name} is {short(dataset[name])}; expected a list")
    if "annotations" in dataset and dataset["annotations"] is None:
        problems.note(file, "annotations", "no annotations", "it is null; read as an empty list", repaired=True)
    reader = _Reader(file, problems, masks)
    reader.categories(dataset["categories"])
    reader.images(dataset["images"])
    reader.annotations(dataset.get("annotations") or [])
    return reader.records


class _Reader:
    def __init__(self, file: Path, problems: Problems, masks: bool) -> None:
        self.file, self.problems, self.masks, self.records = file, problems, masks, CocoRecords()
        self._unclear: set[int] = set()  # category ids that stand for two names

    def _note(self, place: str, kind: str, detail: str, *, repaired: bool = False) -> None:
        self.problems.note(self.file, place, kind, detail, repaired=repaired)

    def categories(self, categories: list[Any]) -> None:
        names: dict[int, str] = {}
        entries: dict[int, Record] = {}
        for index, category in enumerate(categories):
            place = f"categories[{index}]"
            number = self.records.id_of(category.get("id")) if isinstance(category, dict) else None
            if number is None:
                self._note(place, "broken category", f"{_field(category, 'id')}; expected an id; left out")
                continue
            name = category.get("name")
            if not isinstance(name, str) or not name.strip():
                name = str(number)
                detail = f"{_field(category, 'name')}; expected a text; called {name!r}, after its id"
                self._note(place, "category without name", detail, repaired=True)
            entries.setdefault(number, category | {"id": number, "name": name})
            if names.setdefault(number, name) != name:
                self._unclear.add(number)
                detail = f"id {number} is {names[number]!r} and {name!r}; its annotations are ignored regions"
                self._note(place, "repeated category id", detail)
        classes: dict[str, int] = {}
        category_ids: list[int] = []
        for number in sorted(names):
            name = names[number]
            if name in classes:
                detail = f"{category_ids[classes[name]]} and {number} are both called {name!r}; read as one class"
                self._note(f"category {number}", "repeated class name", detail, repaired=True)
            else:
                classes[name] = len(category_ids)
                category_ids.append(number)
            self.records.class_of[number] = classes[name]
        name_of_key: dict[str, str] = {}
        for name in classes:
            former = name_of_key.setdefault(" ".join(name.casefold().split()), name)
            if former != name:
                detail = f"{former!r} and {name!r} are two classes; give them one name if they are the same thing"
                self._note("categories", "similar class names", detail, repaired=True)
        self.records.categories = [entries[number] for number in sorted(entries)]
        if not classes:
            raise ValueError(f"{self.file}: categories has no category with an id; expected one for each class")
        self.records.category_ids, self.records.class_names = tuple(category_ids), tuple(classes)

    def images(self, images: list[Any]) -> None:
        unsized_count = 0
        for index, image in enumerate(images):
            place = f"images[{index}]"
            number = self.records.id_of(image.get("id")) if isinstance(image, dict) else None
            if number is None:
                self._note(place, "broken image", f"{_field(image, 'id')}; expected an id; left out")
                continue
            if number in self.records.images or number in self.records.left_out:
                self._repeated(place, number, image)
                continue
            name = image.get("file_name")
            if not (isinstance(name, str) and name) and not isinstance(image.get("coco_url"), str):
                self.records.left_out.add(number)
                detail = f"{_field(image, 'file_name')}; expected a name; the image and its annotations are left out"
                self._note(place, "broken image", detail)
                continue
            sides = [image.get(side) for side in ("height", "width")]
            height, width = map(_whole, sides)
            if height is None or width is None or not 0 < height * width < 1 << 31 or height < 0:
                if any(side is not None for side in sides):
                    detail = f"height, width are {short(sides)}; expected pixels; taken from the picture"
                    self._note(place, "broken size", detail, repaired=True)
                height = width = None
                unsized_count += all(side is None for side in sides)
            self.records.images[number] = image | {"id": number, "height": height, "width": width}
            self.records.annotations[number] = []
        if unsized_count:
            detail = f"{unsized_count} state none: whether a picture was outlined at another size cannot be checked"
            self._note("images", "no size", detail, repaired=True)

    def _repeated(self, place: str, number: int, image: Record) -> None:
        former = self.records.images.get(number)
        name = image.get("file_name")
        if former is not None and former.get("file_name") == name:
            self._note(place, "repeated image", f"id {number}, {name}, is listed before; read once", repaired=True)
            return
        if former is not None:
            del self.records.images[number], self.records.annotations[number]
            self.records.left_out.add(number)
            name = f"{former.get('file_name')} and {name}"
        detail = f"id {number} stands for {name}: whose its annotations are cannot be known; all are left out"
        self._note(place, "repeated image id", detail)

    def annotations(self, entries: list[Any]) -> None:
        rle_annotations: list[tuple[str, Record]] = []
        id_counts: Counter[Any] = Counter()
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self._note(f"annotations[{index}]", "broken annotation", f"{short(entry)}; expected an object")
                continue
            place = f"annotation {entry['id']}" if is_integer(entry.get("id")) else f"annotations[{index}]"
            id_counts[str(entry.get("id"))] += "id" in entry
            annotation = self._annotation(place, entry)
            if annotation is None:
                continue
            self.records.annotations[annotation["image_id"]].append(annotation)
            if isinstance(annotation["segmentation"], dict):
                rle_annotations.append((place, annotation))
        repeated_ids = [number for number, count in id_counts.items() if count > 1]
        if repeated_ids:
            detail = (
                f"{len(repeated_ids)} ids occur again, such as {short(repeated_ids[0])}; each is an object of its own"
            )
            self._note("annotations", "repeated annotation id", detail, repaired=True)
        if self.masks:
            self._check_packed(rle_annotations)

    def _annotation(self, place: str, entry: Record) -> Record | None:
        image_id, category_id = self.records.id_of(entry.get("image_id")), self.records.id_of(entry.get("category_id"))
        if image_id in self.records.left_out:
            self._note(place, "image left out", f"image_id {short(entry.get('image_id'))} is left out, see there")
            return None
        if image_id is None or image_id not in self.records.images:
            detail = f"image_id {short(entry.get('image_id'))} is not among the images; left out"
            self._note(place, "unknown image", detail)
            return None
        image, iscrowd = self.records.images[image_id], entry.get("iscrowd")
        crowd = iscrowd if isinstance(iscrowd, bool) else _whole(iscrowd or 0)
        if crowd not in (0, 1):
            detail = f"iscrowd is {short(iscrowd)}, expected 0 or 1; read as 0"
            self._note(place, "broken iscrowd", detail, repaired=True)
            crowd = 0
        annotation = entry | {"place": place, "image_id": image_id, "ignored": None, "iscrowd": int(crowd)}
        annotation["category_id"] = category_id
        if category_id is None or category_id not in self.records.class_of or category_id in self._unclear:
            if category_id not in self._unclear:
                detail = f"category_id {short(entry.get('category_id'))} is not among the categories; ignored region"
                self._note(place, "unknown category", detail)
            annotation["category_id"], annotation["every_class"] = self.records.category_ids[0], True
        box, fault = _box(entry.get("bbox"), image)
        if not self.masks:
            if not is_box(entry.get("bbox")):
                self._note(place, "broken box", f"{fault}; left out")
                return None
            return annotation | {"segmentation": None, "box_inside": box}
        segmentation, problem = _polygons(entry.get("segmentation"))
        kind = "degenerate polygon" if entry.get("segmentation") else "no mask"
        if segmentation is None and box is None:
            self._note(place, kind, f"{problem}, and {fault}; left out")
            return None
        if segmentation is None:
            self._note(place, kind, f"{problem}; its box {short(box)} is an ignored region")
            annotation["ignored"] = box
        elif problem:
            self._note(place, "degenerate polygon", problem)
        elif outside := mostly_outside(segmentation, image["height"], image["width"]):
            self._note(place, "outline outside", outside)
        elif fault and entry.get("bbox") is not None:
            self._note(place, "box outside", f"{fault}; the box is taken from the mask", repaired=True)
        return annotation | {"segmentation": segmentation, "box_inside": box}

    def _check_packed(self, rle_annotations: list[tuple[str, Record]]) -> None:
        """Ignore run lengths that do not fit their size: pycocotools would write outside its memory."""
        sizes = [_size(annotation["segmentation"]) for _, annotation in rle_annotations]
        counts = [annotation["segmentation"].get("counts") for _, annotation in rle_annotations]
        texts = [runs.encode("utf-8", "replace") if isinstance(runs, str) else b"" for runs in counts]
        are_good = well_formed(texts, np.array([math.prod(size or (0,)) for size in sizes], np.int64))
        for (place, annotation), size, runs, is_good in zip(rle_annotations, sizes, counts, are_good, strict=True):
            if isinstance(runs, list):
                is_good = size is not None and all(map(is_integer, runs)) and min(runs, default=0) >= 0
                is_good = is_good and sum(runs) == math.prod(size or ())
            image = self.records.images[annotation["image_id"]]
            image_hw = (image["height"], image["width"])
            if is_good and size is not None and image_hw in ((None, None), size):
                continue
            sizes_text = f"size {short(annotation['segmentation'].get('size'))}, image {image_hw[0]} x {image_hw[1]}"
            box = annotation["box_inside"]
            consequence = "left out" if box is None else f"its box {short(box)} is an ignored region"
            self._note(place, "broken mask", f"the RLE does not fill its image ({sizes_text}); {consequence}")
            annotation["ignored"], annotation["segmentation"] = box, None
        for number, entries in self.records.annotations.items():
            usable = [entry for entry in entries if entry["segmentation"] is not None or entry["ignored"] is not None]
            self.records.annotations[number] = usable


def _polygons(segmentation: Any) -> tuple[Any, str]:
    """The usable segmentation or None, and what is wrong with it."""
    if isinstance(segmentation, dict) and segmentation:
        return segmentation, ""
    if not isinstance(segmentation, list) or not segmentation:
        return None, f"segmentation is {short(segmentation)}"
    is_bare = all(map(is_number, segmentation)) or all(
        isinstance(point, list) and len(point) == 2 for point in segmentation
    )  # one polygon
    polygons = [_flat(polygon) for polygon in ([segmentation] if is_bare else segmentation)]
    good = [polygon for polygon in polygons if not _degenerate(polygon)]
    problem = (
        f"{len(polygons) - len(good)} of {len(polygons)} polygons enclose nothing or are no finite points below 1e6"
    )
    if not good:
        return None, problem
    return good, problem if len(good) < len(polygons) else ""


def _flat(polygon: Any) -> Any:
    """Coordinates x, y, x, y ... of a polygon, also of [x, y] pairs and of texts; anything else unchanged."""
    if isinstance(polygon, list) and polygon and all(isinstance(point, list) and len(point) == 2 for point in polygon):
        polygon = [value for point in polygon for value in point]
    try:
        is_text = isinstance(polygon, list) and any(isinstance(value, str) for value in polygon)
        return [float(value) for value in polygon] if is_text else polygon
    except (TypeError, ValueError, OverflowError):
        return polygon


def _degenerate(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(is_number, polygon)):
        return True
    points = np.array(polygon, float).reshape(-1, 2)
    if np.abs(points).max() >= LARGEST_COORDINATE_PX:
        return True
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2 < 1e-6


def mostly_outside(segmentation: Any, height: int | None, width: int | None) -> str:
    """Describe polygons of which more than half of the box lies outside the image; "" for others."""
    if not isinstance(segmentation, list) or height is None or width is None:
        return ""
    points = np.concatenate([np.array(polygon, float).reshape(-1, 2) for polygon in segmentation])
    low, high = points.min(0), points.max(0)
    inside = np.clip(np.minimum(high, [width, height]) - np.maximum(low, 0), 0, None)
    if inside.prod() >= 0.5 * (high - low).prod():
        return ""
    reach = " to ".join(", ".join(f"{value:g}" for value in corner) for corner in (low, high))
    return f"it reaches from {reach} in an image of {width} x {height}; only what lies inside is read"


def _box(box: Any, image: Record) -> tuple[list[float] | None, str]:
    """The part of a box inside the image, or None; and what is wrong with it."""
    if not is_box(box):
        return None, f"bbox is {short(box)}, expected [x, y, width, height]"
    x, y, w, h = map(float, box)
    width, height = (image[side] or LARGEST_COORDINATE_PX for side in ("width", "height"))
    fault = f"bbox is {short(box)} in an image of {image['width']} x {image['height']}"
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    inside = x >= -_SLACK_PX and y >= -_SLACK_PX and x + w <= width + _SLACK_PX and y + h <= height + _SLACK_PX
    if w <= 0 or h <= 0 or right <= left or bottom <= top:
        return None, fault
    return [left, top, right - left, bottom - top], "" if inside else fault


def _whole(value: Any) -> int | None:
    """A whole number, also as 4.0 or "4"; None for anything else."""
    if is_integer(value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 19 else None


def _size(rle: Record) -> tuple[int, int] | None:
    size: Any = rle.get("size")
    return (size[0], size[1]) if is_size(size) and size[0] * size[1] < 1 << 31 else None


def _field(record: Any, name: str) -> str:
    if not isinstance(record, dict):
        return f"is {short(record)}, expected an object"
    return f"{name} is {short(record[name])}" if name in record else f"{name} is missing"
