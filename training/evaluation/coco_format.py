"""COCO's records in memory: ground truth from samples or from a file, results from detections.

A file of ground truth (COCO's or LVIS's) is read as data sets are: each record is used, repaired or reported. Objects
whose mask cannot be read or whose class is unknown are ignored regions, as crowds are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools import mask as rle

from training.datasets import Sample
from training.datasets.coco_records import CocoRecords, Record, is_ignored, read_records
from training.datasets.sample import Problems
from training.metrics.coco import compressed
from training.metrics.coco_schema import RecordError, is_integer, is_number

if TYPE_CHECKING:
    from detectron2.structures import Instances


def encode(mask_hw: np.ndarray) -> dict[str, Any]:
    """Compressed RLE of a bool H x W mask (counts as bytes).

    Only the columns that the mask touches are read: an object covers few columns of a photograph.
    """
    height, width = mask_hw.shape
    columns = np.flatnonzero(mask_hw.any(axis=0))
    first_column, end_column = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
    # Runs of equal values down the columns, background first; the columns beside are background.
    values = np.concatenate([[False], mask_hw[:, first_column:end_column].T.ravel(), [False]])
    changes = np.flatnonzero(values[1:] != values[:-1])
    ends = np.concatenate([[0], changes + first_column * height, [height * width]])
    counts = np.diff(ends)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    mask_rle: dict[str, Any] = rle.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return mask_rle


def decode_masks(mask_rles: Sequence[dict[str, Any]], shape_hw: tuple[int, int]) -> np.ndarray:
    """bool N x H x W of compressed RLEs of one image."""
    masks = [rle.decode(mask_rle).astype(bool) for mask_rle in mask_rles]
    return np.array(masks, bool).reshape(-1, *shape_hw)


class TruthBuilder:
    """Collects samples into a COCO ground truth; categories are numbered from 1 in the order of the classes."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, sample: Sample) -> None:
        """Add one picture's truth."""
        height, width = sample.image.shape[:2]
        self.images.append({"id": sample.image_id, "height": height, "width": width})
        for mask, label, crowd in zip(sample.masks, sample.classes, sample.crowd, strict=True):
            segmentation = encode(mask)
            record = {"id": len(self.annotations) + 1, "image_id": sample.image_id, "category_id": int(label) + 1}
            measures = {"area": float(rle.area(segmentation)), "bbox": rle.toBbox(segmentation).tolist()}
            self.annotations.append(record | measures | {"iscrowd": int(crowd), "segmentation": segmentation})

    def join(self, builder: TruthBuilder) -> None:
        """Add the images and annotations of another builder of the same classes."""
        id_offset = len(self.annotations)
        self.images += builder.images
        self.annotations += [{**annotation, "id": annotation["id"] + id_offset} for annotation in builder.annotations]

    def build(self) -> dict[str, Any]:
        """The ground truth, as a COCO file holds it."""
        categories = [{"id": number + 1, "name": name} for number, name in enumerate(self.class_names)]
        return {"info": {}, "images": self.images, "annotations": self.annotations, "categories": categories}


def coco_results(
    image_id: int, masks: Iterable[np.ndarray], scores: Iterable[float], classes: Iterable[int]
) -> list[dict[str, Any]]:
    """COCO results of one image from bool N x H x W masks; without a box, which would change the areas."""
    return [
        {"image_id": image_id, "category_id": int(label) + 1, "score": float(score), "segmentation": encode(mask)}
        for mask, score, label in zip(masks, scores, classes, strict=True)
    ]


def instance_results(image_id: int, instances: Instances, masks: str = "pred_masks") -> list[dict[str, Any]]:
    """COCO results of one image from a network's detections on the CPU; `masks` names the field that holds them."""
    hard = instances.get(masks).numpy().astype(bool)
    return coco_results(image_id, hard, instances.scores.numpy(), instances.pred_classes.numpy())


_LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True, slots=True)
class Truth:
    """Ground truth in the form that every metric takes.

    Attributes:
        dataset: images, annotations and categories, whole; annotation ids count from 1.
        problems: what is wrong with the file.
        left_out: ids of images that cannot be judged.
        id_of: reads an id as the file's were read.
    """

    dataset: Record
    problems: Problems
    left_out: frozenset[int]
    id_of: Callable[[Any], int | None]

    def notes(self) -> list[str]:
        """Notes for readers of the numbers: a line for each kind of problem."""
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
            record = _annotation(annotation, image, path, problems, masks)
            class_ids = [category["id"] for category in records.categories if annotation.get("every_class")]
            for category_id in class_ids or [annotation["category_id"]]:
                annotations.append(record | {"id": len(annotations) + 1, "category_id": category_id})
    whole = {"images": images, "annotations": annotations, "categories": records.categories}
    return Truth(whole, problems, frozenset(records.left_out), records.id_of)


def _image(image: Record, records: CocoRecords, path: Path, masks: bool, federated: bool) -> Record:
    sides = image["height"], image["width"]
    if sides == (None, None):
        segmentations = [annotation["segmentation"] for annotation in records.annotations[image["id"]]]
        sides = next((tuple(mask["size"]) for mask in segmentations if isinstance(mask, dict)), (0, 0))
        if masks and not all(sides):
            raise RecordError(f"{path}: image {image['id']}: height, width are missing; expected positive numbers")
    for field in _LVIS_LISTS if federated else ():
        category_ids = image.get(field)
        if not isinstance(category_ids, list) or not all(map(is_integer, category_ids)):
            expected = "a list of category ids (this metric needs an LVIS file)"
            raise RecordError(f"{path}: image {image['id']}: {field} is {category_ids!r:.60}; expected {expected}")
    return image | {"height": sides[0], "width": sides[1]}


def _annotation(annotation: Record, image: Record, path: Path, problems: Problems, masks: bool) -> Record:
    """An annotation with a box, an area and, with `masks`, a segmentation."""
    is_crowd = is_ignored(annotation)
    record = annotation | {"iscrowd": int(is_crowd)} | ({"ignore": 1} if is_crowd and not annotation["iscrowd"] else {})
    if annotation["ignored"] is not None:
        x, y, w, h = record["bbox"] = annotation["ignored"]
        record["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    area = annotation.get("area")
    if not is_number(area) or area < 0:  # type: ignore[operator]
        mask_rle = compressed(record["segmentation"], image["height"], image["width"]) if masks else None
        record["area"] = float(coco_mask.area(mask_rle)) if mask_rle else record["bbox"][2] * record["bbox"][3]
        source = "mask" if mask_rle else "box"
        detail = f"area is {area!r:.60}, expected 0 or more; taken from the {source}"
        problems.note(path, annotation["place"], "broken area", detail, repaired=True)
    return record
