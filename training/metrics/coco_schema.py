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

from training.metrics.boundary import well_formed

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
    """Check COCO results for a ground truth; the results, and how many were left out for their category or image.

    Args:
        source: to name in errors.
        masks: whether masks are compared; else boxes.
        unknown_categories: leave out results of categories that the truth lacks, as COCO's own tool does in silence.
        id_of: reads ids as the truth's were read.
        left_out: images of the truth that cannot be judged.

    Raises:
        RecordError: the first thing that is wrong.
    """
    if not isinstance(results, list):
        raise RecordError(f"{source}: is {short(results)}; expected a list of results")
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    category_ids = {category["id"] for category in truth["categories"]}
    known_results: list[Record] = []
    has_boxes = bool(results) and isinstance(results[0], dict) and bool(results[0].get("bbox"))
    mask_results: list[tuple[str, Record]] = []
    for index, result in enumerate(results):
        place = f"{source}: results[{index}]"
        if not isinstance(result, dict):
            raise RecordError(f"{place}: is {short(result)}; expected an object")
        if id_of is not None:
            ids = {name: id_of(result.get(name)) for name in ("image_id", "category_id")}
            result = result | {name: number for name, number in ids.items() if number is not None}
        if is_integer(result.get("image_id")) and result["image_id"] in left_out:
            continue
        _check_id(place, result, "image_id", sizes)
        _check_id(place, result, "category_id", None if unknown_categories else category_ids)
        _require(is_number(result.get("score")), place, result, "score", "a finite number")
        if has_boxes or (not masks and "segmentation" not in result):
            _require(
                is_box(result.get("bbox")), place, result, "bbox", "[x, y, width, height], finite, sides 0 or more"
            )
        if "segmentation" in result or not has_boxes:
            _check_shape(place, result, sizes[result["image_id"]])
        if "segmentation" in result:
            mask_results.append((place, result))
        if result["category_id"] in category_ids:
            known_results.append(result)
    _check_compressed(mask_results)
    return known_results, len(results) - len(known_results)


def _require(is_fine: bool, place: str, record: Record, field: str, expected: str) -> None:
    if not is_fine:
        fault = f"is {short(record[field])}" if field in record else "is missing"
        raise RecordError(f"{place}.{field}: {fault}; expected {expected}")


def _check_id(place: str, result: Record, field: str, known_ids: Collection[int] | None) -> None:
    _require(is_integer(result.get(field)), place, result, field, "an integer")
    kind = {"image_id": "an image", "category_id": "a category"}[field]
    _require(
        known_ids is None or result[field] in known_ids, place, result, field, f"the id of {kind} of the ground truth"
    )


def _check_shape(place: str, result: Record, size: tuple[int, int]) -> None:
    segmentation, place_inside = result.get("segmentation"), f"{place}.segmentation"
    _require(isinstance(segmentation, list | dict), place, result, "segmentation", "polygons or an RLE object")
    if isinstance(segmentation, list):
        _require(bool(segmentation), place, result, "segmentation", "at least one polygon")
        for number, polygon in enumerate(segmentation):
            is_fine = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
            if not is_fine or not all(is_number(value) and abs(value) < 1e6 for value in polygon):
                expected = "x, y of at least three points, finite, below 1e6"
                raise RecordError(f"{place_inside}[{number}]: is {short(polygon)}; expected {expected}")
        return
    assert isinstance(segmentation, dict)
    is_fine = segmentation.get("size") == list(size) or (not any(size) and is_size(segmentation.get("size")))
    _require(is_fine, place_inside, segmentation, "size", f"the image's [height, width], {list(size)}")
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        is_fine = all(map(is_integer, counts)) and min(counts, default=0) >= 0 and sum(counts) == math.prod(size)
        _require(is_fine, place_inside, segmentation, "counts", f"run lengths that add up to {math.prod(size)}")
    else:
        is_fine = isinstance(counts, str) and counts.isascii()
        _require(is_fine, place_inside, segmentation, "counts", "a compressed RLE or run lengths")


def _check_compressed(results: Iterable[tuple[str, Record]]) -> None:
    """Check all compressed masks at once, which is a hundred times faster than one by one."""
    masks = [(place, result["segmentation"]) for place, result in results]
    masks = [(place, mask) for place, mask in masks if isinstance(mask, dict) and isinstance(mask["counts"], str)]
    pixels = np.array([math.prod(mask["size"]) for _, mask in masks], np.int64)
    good = well_formed([mask["counts"].encode() for _, mask in masks], pixels)
    for index in np.flatnonzero(~good)[:1]:
        place, mask = masks[index]
        expected = f"a compressed RLE of exactly {pixels[index]} pixels ({mask['size'][0]} x {mask['size'][1]})"
        _require(False, f"{place}.segmentation", mask, "counts", expected)


def is_integer(value: Any) -> bool:
    """Whether a value is an int that fits into 64 bits, no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62


def is_number(value: Any) -> bool:
    """Whether a value is a finite int or float, no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # neither infinite nor NaN nor an integer beyond floats


def is_box(value: Any) -> bool:
    """Whether a value is [x, y, width, height], finite, sides 0 or more."""
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value)) and min(value[2:]) >= 0


def is_size(value: Any) -> bool:
    """Whether a value is [height, width], positive integers."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_integer, value)) and min(value) > 0


def short(value: Any) -> str:
    """Shorten a value's text to 60 characters for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
