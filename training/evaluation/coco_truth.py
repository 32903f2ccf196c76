"""COCO and LVIS ground truth to judge by, read as data sets are: each record is used, repaired or named.

What cannot be judged (a mask that cannot be read, a class that is not known) is ignored, as crowds are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from training.datasets.coco_records import CocoRecords, Record, is_ignored, read_records
from training.datasets.problems import Problems
from training.metrics.coco import compressed
from training.metrics.coco_schema import RecordError, is_integer, is_number

_LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True, slots=True)
class Truth:
    """Ground truth that every metric can take.

    Attributes:
        dataset: images, annotations and categories, whole; annotation ids count from 1.
        problems: what the file has that cannot be right.
        left_out: ids of images that cannot be judged.
        id_of: reads an id as the file's were read.
    """

    dataset: Record
    problems: Problems
    left_out: frozenset[int]
    id_of: Callable[[Any], int | None]

    def notes(self) -> list[str]:
        """What a reader of numbers should know: a line for each kind of problem."""
        kinds = self.problems.counts()
        examples = {problem.kind: problem for problem in reversed(self.problems.entries)}
        return [f"ground truth: {count} x {kind}; {examples[kind]}" for kind, count in kinds.items()]


def checked_truth(dataset: Any, path: Path, *, masks: bool, federated: bool = False) -> Truth:
    """Check a COCO (`federated`: LVIS) ground truth.

    Args:
        dataset: parsed JSON of the file `path`.
        masks: whether segmentations are going to be used; boxes otherwise.
        federated: demand LVIS's lists of categories for each image.

    Raises:
        RecordError: the file is no ground truth of this kind, or an image has no size to draw masks in.
    """
    problems = Problems()
    try:
        records = read_records(dataset, path, problems, masks=masks)
    except ValueError as error:
        raise RecordError(str(error)) from error
    images = [_image(image, records, path, masks, federated) for image in records.images.values()]
    annotations: list[Record] = []
    for image in images:
        for annotation in records.annotations[image["id"]]:
            checked = _annotation(annotation, image, path, problems, masks)
            named = [category["id"] for category in records.categories if annotation.get("every_class")]
            for category_id in named or [annotation["category_id"]]:
                annotations.append(checked | {"id": len(annotations) + 1, "category_id": category_id})
    whole = {"images": images, "annotations": annotations, "categories": records.categories}
    return Truth(whole, problems, frozenset(records.left_out), records.id_of)


def _image(image: Record, records: CocoRecords, path: Path, masks: bool, federated: bool) -> Record:
    sides = image["height"], image["width"]
    if sides == (None, None):
        drawn = [annotation["segmentation"] for annotation in records.annotations[image["id"]]]
        sides = next((tuple(mask["size"]) for mask in drawn if isinstance(mask, dict)), (0, 0))
        if masks and not all(sides):
            raise RecordError(f"{path}: image {image['id']}: height, width are missing; expected positive numbers")
    for field in _LVIS_LISTS if federated else ():
        listed = image.get(field)
        if not isinstance(listed, list) or not all(map(is_integer, listed)):
            expected = "a list of category ids (this metric needs an LVIS file)"
            raise RecordError(f"{path}: image {image['id']}: {field} is {listed!r:.60}; expected {expected}")
    return image | {"height": sides[0], "width": sides[1]}


def _annotation(annotation: Record, image: Record, path: Path, problems: Problems, masks: bool) -> Record:
    """An annotation with a box, an area and, with `masks`, a segmentation."""
    ignored = is_ignored(annotation)
    checked = annotation | {"iscrowd": int(ignored)} | ({"ignore": 1} if ignored and not annotation["iscrowd"] else {})
    if annotation["ignored"] is not None:
        x, y, w, h = checked["bbox"] = annotation["ignored"]
        checked["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    area = annotation.get("area")
    if not is_number(area) or area < 0:  # type: ignore[operator]
        packed = compressed(checked["segmentation"], image["height"], image["width"]) if masks else None
        checked["area"] = float(coco_mask.area(packed)) if packed else checked["bbox"][2] * checked["bbox"][3]
        source = "mask" if packed else "box"
        detail = f"area is {area!r:.60}, expected 0 or more; taken from the {source}"
        problems.note(path, annotation["place"], "broken area", detail, repaired=True)
    return checked
