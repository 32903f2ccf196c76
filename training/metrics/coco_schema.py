"""COCO and LVIS files, checked before they are used: whatever is malformed is named by file, index and field.

pycocotools checks next to nothing: a broken run-length string makes it read and write outside its memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from training.metrics.rle import well_formed

Record = dict[str, Any]
LARGEST_PIXELS = 1 << 31


class RecordError(ValueError):
    """A file that cannot be evaluated. The message names the file, the record's index and the field."""


def read_json(path: Path) -> Any:
    """Parsed JSON. Raises RecordError where the file cannot be read or is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: is not JSON: {error}") from error


def read_truth(path: Path, *, masks: bool, federated: bool = False) -> Record:
    """A COCO (`federated`: LVIS) ground truth.

    Args:
        path: of the JSON file.
        masks: whether segmentations are going to be used; boxes are checked otherwise.
        federated: demand LVIS's lists of categories for each image.

    Raises:
        RecordError: the first thing that is wrong.
    """
    return checked_truth(read_json(path), str(path), masks=masks, federated=federated)


def read_results(
    path: Path, truth: Record, *, masks: bool, unknown_categories: bool = False
) -> tuple[list[Record], int]:
    """COCO results for a checked ground truth, and how many were left out for their category.

    Args:
        unknown_categories: leave out results of categories that the truth lacks, as COCO's own tool does in silence.

    Raises:
        RecordError: the first thing that is wrong.
    """
    return checked_results(read_json(path), str(path), truth, masks=masks, unknown_categories=unknown_categories)


def checked_truth(dataset: Any, source: str, *, masks: bool, federated: bool = False) -> Record:
    """See `read_truth`."""
    if not isinstance(dataset, dict):
        raise RecordError(
            f"{source}: is a JSON {_kind(dataset)}; expected an object with images, annotations, categories"
        )
    check = _Checks(source)
    for index, record in enumerate(check.records(dataset, "images")):
        check.image(f"images[{index}]", record, masks=masks, federated=federated)
    for index, record in enumerate(check.records(dataset, "categories")):
        check.category(f"categories[{index}]", record)
    check.unique(dataset, "images")
    check.unique(dataset, "categories")
    sizes = _sizes(dataset)
    known = {category["id"] for category in dataset["categories"]}
    for index, record in enumerate(check.records(dataset, "annotations")):
        place = f"annotations[{index}]"
        check.integer(place, record, "id")
        check.membership(place, record, sizes, known)
        check.that(
            is_number(record.get("area")) and record["area"] >= 0,
            place,
            "area",
            record,
            "a number of pixels, 0 or more",
        )
        check.that(record.get("iscrowd", 0) in (0, 1), place, "iscrowd", record, "0 or 1")
        check.shape(place, record, sizes[record["image_id"]], masks=masks)
    check.unique(dataset, "annotations")
    check.compressed(
        (f"annotations[{n}]", annotation) for n, annotation in enumerate(dataset["annotations"] if masks else ())
    )
    return dataset


def checked_results(
    results: Any, source: str, truth: Record, *, masks: bool, unknown_categories: bool = False
) -> tuple[list[Record], int]:
    """See `read_results`."""
    if not isinstance(results, list):
        raise RecordError(f"{source}: is a JSON {_kind(results)}; expected a list of results")
    check, sizes = _Checks(source), _sizes(truth)
    known = {category["id"] for category in truth["categories"]}
    kept: list[Record] = []
    boxed = bool(results) and isinstance(results[0], dict) and bool(results[0].get("bbox"))
    for index, result in enumerate(results):
        place = f"results[{index}]"
        check.that(isinstance(result, dict), place, "", result, "an object")
        check.membership(place, result, sizes, None if unknown_categories else known)
        check.that(is_number(result.get("score")), place, "score", result, "a finite number")
        if boxed or (not masks and "segmentation" not in result):
            check.box(place, result)
        if "segmentation" in result or not boxed:
            check.shape(place, result, sizes[result["image_id"]], masks=True)
        if result["category_id"] in known:
            kept.append(result)
    check.compressed((f"results[{n}]", result) for n, result in enumerate(results) if "segmentation" in result)
    return kept, len(results) - len(kept)


def _sizes(dataset: Record) -> dict[int, tuple[int, int]]:
    return {image["id"]: (image.get("height", 0), image.get("width", 0)) for image in dataset["images"]}


class _Checks:
    def __init__(self, source: str) -> None:
        self.source = source

    def that(self, fine: bool, place: str, field: str, record: Any, expected: str) -> None:
        if fine:
            return
        where = f"{self.source}: {place}{'.' if field else ''}{field}"
        if field and isinstance(record, dict) and field not in record:
            raise RecordError(f"{where}: is missing; expected {expected}")
        value = record.get(field) if field and isinstance(record, dict) else record
        raise RecordError(f"{where}: is {_short(value)}; expected {expected}")

    def records(self, dataset: Record, name: str) -> list[Record]:
        listed = dataset.get(name)
        self.that(isinstance(listed, list), "", name, dataset, "a list")
        assert isinstance(listed, list)
        for index, record in enumerate(listed):
            self.that(isinstance(record, dict), f"{name}[{index}]", "", record, "an object")
        return listed

    def integer(self, place: str, record: Record, field: str) -> None:
        self.that(is_integer(record.get(field)), place, field, record, "an integer")

    def unique(self, dataset: Record, name: str) -> None:
        seen: dict[int, int] = {}
        for index, record in enumerate(dataset[name]):
            before = seen.setdefault(record["id"], index)
            self.that(
                before == index, f"{name}[{index}]", "id", record, f"an id of its own; {name}[{before}] has it too"
            )

    def image(self, place: str, record: Record, *, masks: bool, federated: bool) -> None:
        self.integer(place, record, "id")
        for side in ("height", "width") if masks else ():
            self.that(
                is_integer(record.get(side)) and record[side] > 0, place, side, record, "a positive number of pixels"
            )
        if masks:
            self.that(
                record["height"] * record["width"] < LARGEST_PIXELS,
                place,
                "width",
                record,
                "an image below 2^31 pixels",
            )
        for field in ("neg_category_ids", "not_exhaustive_category_ids") if federated else ():
            listed = record.get(field)
            fine = isinstance(listed, list) and all(map(is_integer, listed))
            self.that(fine, place, field, record, "a list of category ids (this metric needs an LVIS file)")

    def category(self, place: str, record: Record) -> None:
        self.integer(place, record, "id")
        self.that(isinstance(record.get("name"), str), place, "name", record, "a name")

    def membership(
        self, place: str, record: Record, images: dict[int, tuple[int, int]], categories: set[int] | None
    ) -> None:
        self.integer(place, record, "image_id")
        self.that(record["image_id"] in images, place, "image_id", record, "the id of an image of the ground truth")
        self.integer(place, record, "category_id")
        fine = categories is None or record["category_id"] in categories
        self.that(fine, place, "category_id", record, "the id of a category of the ground truth")

    def box(self, place: str, record: Record) -> None:
        box = record.get("bbox")
        fine = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
        fine = fine and box is not None and min(box[2:]) >= 0
        self.that(fine, place, "bbox", record, "[x, y, width, height], finite, sides 0 or more")

    def shape(self, place: str, record: Record, size: tuple[int, int], *, masks: bool) -> None:
        if not masks:
            return self.box(place, record)
        drawn = record.get("segmentation")
        self.that(isinstance(drawn, list | dict), place, "segmentation", record, "polygons or an RLE object")
        if isinstance(drawn, list):
            return self._polygons(place, drawn)
        assert isinstance(drawn, dict)
        expected = f"the image's [height, width], {list(size)}"
        fine = drawn.get("size") == list(size) or (not any(size) and _is_size(drawn.get("size")))
        self.that(fine, f"{place}.segmentation", "size", drawn, expected)
        counts = drawn.get("counts")
        if isinstance(counts, list):
            fine = all(map(is_integer, counts)) and min(counts, default=0) >= 0 and sum(counts) == math.prod(size)
            self.that(fine, f"{place}.segmentation", "counts", drawn, f"run lengths that add up to {math.prod(size)}")
            return None
        fine = isinstance(counts, str) and counts.isascii()
        return self.that(fine, f"{place}.segmentation", "counts", drawn, "a compressed RLE or run lengths")

    def _polygons(self, place: str, drawn: list[Any]) -> None:
        self.that(bool(drawn), place, "segmentation", {"segmentation": drawn}, "at least one polygon")
        for number, polygon in enumerate(drawn):
            fine = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
            fine = fine and all(is_number(number) and abs(number) < 1e6 for number in polygon)
            expected = "x, y of at least three points, finite, below 1e6"
            self.that(fine, f"{place}.segmentation[{number}]", "", polygon, expected)

    def compressed(self, listed: Iterable[tuple[str, Record]]) -> None:
        """All compressed masks at once, which is a hundred times faster than one by one."""
        packed = [(p, o["segmentation"]) for p, o in listed if isinstance(o["segmentation"], dict)]
        packed = [(place, packed) for place, packed in packed if isinstance(packed["counts"], str)]
        pixels = np.array([math.prod(rle["size"]) for _, rle in packed], np.int64)
        good = well_formed([rle["counts"].encode() for _, rle in packed], pixels)
        for index in np.flatnonzero(~good)[:1]:
            place, segmentation = packed[index]
            height, width = segmentation["size"]
            expected = f"a compressed RLE of exactly {pixels[index]} pixels ({height} x {width})"
            self.that(False, f"{place}.segmentation", "counts", segmentation, expected)


def is_integer(value: Any) -> bool:
    """An int that 64 bits hold, no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62


def is_number(value: Any) -> bool:
    """A finite int or float, no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # neither infinite nor NaN nor an integer beyond floats


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_integer, value)) and min(value) > 0


def _kind(value: Any) -> str:
    names: list[tuple[Callable[[Any], bool], str]] = [
        (lambda v: v is None, "null"),
        (lambda v: isinstance(v, bool), "boolean"),
        (lambda v: isinstance(v, int | float), "number"),
        (lambda v: isinstance(v, str), "string"),
        (lambda v: isinstance(v, list), "list"),
    ]
    return next((name for test, name in names if test(value)), "object")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
