"""COCO results, checked before they are used: whatever is malformed is named by file, index and field.

Ground truth is read by `training.datasets.coco_records`.

pycocotools checks next to nothing: a broken run-length string makes it read and write outside its memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.metrics.rle import well_formed

Record = dict[str, Any]


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


def read_pixels(path: Path, mode: str | None = None) -> np.ndarray:
    """An image file as it is, or converted to a Pillow mode. Raises RecordError where it is no readable image."""
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert(mode) if mode else picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise RecordError(f"{path}: is no readable image: {error}") from error


def read_results(path: Path, truth: Record, *, masks: bool, **how: Any) -> tuple[list[Record], int]:
    """As `checked_results`, of a file."""
    return checked_results(read_json(path), str(path), truth, masks=masks, **how)


def checked_results(
    results: Any,
    source: str,
    truth: Record,
    *,
    masks: bool,
    unknown_categories: bool = False,
    id_of: Callable[[Any], int | None] | None = None,
    left_out: Collection[int] = (),
) -> tuple[list[Record], int]:
    """COCO results for a ground truth, and how many were left out for their category or image.

    Args:
        results: parsed JSON.
        source: to name in errors.
        truth: see `training.evaluation.coco_truth`.
        masks: whether masks are compared; else boxes.
        unknown_categories: leave out results of categories that the truth lacks, as COCO's own tool does in silence.
        id_of: reads ids as the truth's were read.
        left_out: images of the truth that cannot be judged.

    Raises:
        RecordError: the first thing that is wrong.
    """
    if not isinstance(results, list):
        raise RecordError(f"{source}: is {_short(results)}; expected a list of results")
    check, sizes = _Checks(source), {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    known = {category["id"] for category in truth["categories"]}
    kept: list[Record] = []
    boxed = bool(results) and isinstance(results[0], dict) and bool(results[0].get("bbox"))
    packed: list[tuple[str, Record]] = []
    for index, result in enumerate(results):
        place = f"results[{index}]"
        check.that(isinstance(result, dict), place, "", result, "an object")
        if id_of is not None:
            ids = {name: id_of(result.get(name)) for name in ("image_id", "category_id")}
            result = result | {name: number for name, number in ids.items() if number is not None}
        if is_integer(result.get("image_id")) and result["image_id"] in left_out:
            continue
        check.membership(place, result, sizes, None if unknown_categories else known)
        check.that(is_number(result.get("score")), place, "score", result, "a finite number")
        if boxed or (not masks and "segmentation" not in result):
            check.box(place, result)
        if "segmentation" in result or not boxed:
            check.shape(place, result, sizes[result["image_id"]])
        if "segmentation" in result:
            packed.append((place, result))
        if result["category_id"] in known:
            kept.append(result)
    check.compressed(packed)
    return kept, len(results) - len(kept)


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

    def integer(self, place: str, result: Record, field: str) -> None:
        self.that(is_integer(result.get(field)), place, field, result, "an integer")

    def membership(
        self, place: str, result: Record, images: dict[int, tuple[int, int]], categories: set[int] | None
    ) -> None:
        self.integer(place, result, "image_id")
        known = result["image_id"] in images
        self.that(known, place, "image_id", result, "the id of an image of the ground truth")
        self.integer(place, result, "category_id")
        known = categories is None or result["category_id"] in categories
        self.that(known, place, "category_id", result, "the id of a category of the ground truth")

    def box(self, place: str, result: Record) -> None:
        box = result.get("bbox")
        fine = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
        fine = fine and box is not None and min(box[2:]) >= 0
        self.that(fine, place, "bbox", result, "[x, y, width, height], finite, sides 0 or more")

    def shape(self, place: str, result: Record, size: tuple[int, int]) -> None:
        drawn = result.get("segmentation")
        self.that(isinstance(drawn, list | dict), place, "segmentation", result, "polygons or an RLE object")
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
            fine = fine and all(is_number(value) and abs(value) < 1e6 for value in polygon)
            expected = "x, y of at least three points, finite, below 1e6"
            self.that(fine, f"{place}.segmentation[{number}]", "", polygon, expected)

    def compressed(self, results: Iterable[tuple[str, Record]]) -> None:
        """All compressed masks at once, which is a hundred times faster than one by one."""
        masks = [(place, result["segmentation"]) for place, result in results]
        masks = [(place, mask) for place, mask in masks if isinstance(mask, dict) and isinstance(mask["counts"], str)]
        pixels = np.array([math.prod(mask["size"]) for _, mask in masks], np.int64)
        good = well_formed([mask["counts"].encode() for _, mask in masks], pixels)
        for index in np.flatnonzero(~good)[:1]:
            place, mask = masks[index]
            expected = f"a compressed RLE of exactly {pixels[index]} pixels ({mask['size'][0]} x {mask['size'][1]})"
            self.that(False, f"{place}.segmentation", "counts", mask, expected)


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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
