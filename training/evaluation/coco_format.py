"""COCO's records in memory: ground truth from samples, results from detections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as rle

from training.datasets import Sample

if TYPE_CHECKING:
    from detectron2.structures import Instances


def encode(mask_hw: np.ndarray) -> dict[str, Any]:
    """Compressed RLE of a bool H x W mask (counts as bytes).

    Only the columns that the mask touches are read: of a photograph an object covers few.
    """
    height, width = mask_hw.shape
    columns = np.flatnonzero(mask_hw.any(axis=0))
    first, last = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
    # Runs of equal values down the columns, background first; the columns beside are background.
    values = np.concatenate([[False], mask_hw[:, first:last].T.ravel(), [False]])
    changes = np.flatnonzero(values[1:] != values[:-1])
    ends = np.concatenate([[0], changes + first * height, [height * width]])
    counts = np.diff(ends)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    encoded: dict[str, Any] = rle.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return encoded


def decode_masks(packed: Sequence[dict[str, Any]], shape_hw: tuple[int, int]) -> np.ndarray:
    """bool N x H x W of compressed RLEs of one image."""
    masks = [rle.decode(packed_mask).astype(bool) for packed_mask in packed]
    return np.array(masks, bool).reshape(-1, *shape_hw)


class TruthBuilder:
    """Collects samples into a COCO ground truth; categories are numbered from 1 in the order of the classes."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, sample: Sample) -> None:
        """Take in one picture's truth."""
        height, width = sample.image.shape[:2]
        self.images.append({"id": sample.image_id, "height": height, "width": width})
        for mask, label, crowd in zip(sample.masks, sample.classes, sample.crowd, strict=True):
            segmentation = encode(mask)
            record = {"id": len(self.annotations) + 1, "image_id": sample.image_id, "category_id": int(label) + 1}
            measures = {"area": float(rle.area(segmentation)), "bbox": rle.toBbox(segmentation).tolist()}
            self.annotations.append(record | measures | {"iscrowd": int(crowd), "segmentation": segmentation})

    def join(self, other: TruthBuilder) -> None:
        """Take in what another builder of the same classes collected, as if it had been added here."""
        before = len(self.annotations)
        self.images += other.images
        self.annotations += [{**annotation, "id": annotation["id"] + before} for annotation in other.annotations]

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
