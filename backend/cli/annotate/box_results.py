"""Boxes of any detector, outlined by the promptable model: `transfiner predict --boxes`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.instance import Instance

if TYPE_CHECKING:
    from model.prompt_predictor import PromptPredictor

Box = tuple[float, float, float, float]
#: Side of the smallest box that is outlined, in px.
LEAST_SIDE_PX = 1.0


@dataclass(frozen=True)
class DetectedBox:
    """A box in pixels of the upright image, with its class and score."""

    box_xyxy: Box
    label: str
    score: float


class BoxFile:
    """A COCO results file: a JSON list of objects with `bbox` (x, y, width, height), `score`, an image and a class.

    The image is `file_name`, or `image_id` as `transfiner predict` numbers images; the class is `category`, or
    `category_id` as COCO numbers its classes.

    Args:
        image_id_of: (file, its place among all) -> COCO's image id.
        names: class name by category id.

    Raises:
        ValueError: it is no such list; names the first wrong record.
    """

    def __init__(self, file: Path, image_id_of: Callable[[Path, int], int], names: dict[int, str]) -> None:
        self._image_id_of = image_id_of
        self._of_image: dict[str | int, list[DetectedBox]] = defaultdict(list)
        records = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(records, list):
            raise ValueError(f"{file} holds a {type(records).__name__}, expected a list of COCO results")
        for number, record in enumerate(records):
            try:
                image = str(record["file_name"]) if "file_name" in record else int(record["image_id"])
                self._of_image[image].append(_detected(record, names))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{file}, record {number}: {error!r}; expected bbox [x, y, width, height], score, image_id or "
                    "file_name, category_id or category"
                ) from error
        self.labels = tuple(dict.fromkeys(box.label for boxes in self._of_image.values() for box in boxes))

    def boxes(self, file: Path, number: int) -> list[DetectedBox]:
        """The boxes of an image, the best score first."""
        boxes = self._of_image.get(file.name) or self._of_image.get(self._image_id_of(file, number)) or []
        return sorted(boxes, key=lambda box: -box.score)


def _detected(record: dict[str, Any], names: dict[int, str]) -> DetectedBox:
    x, y, width, height = (float(value) for value in record["bbox"])
    if not np.isfinite([x, y, width, height]).all() or width < 0 or height < 0:
        raise ValueError(f"bbox is {record['bbox']}")
    label = record["category"] if "category" in record else names.get(int(record["category_id"]))
    box = (x, y, x + max(width, LEAST_SIDE_PX), y + max(height, LEAST_SIDE_PX))
    return DetectedBox(box, str(label or record["category_id"]), float(record["score"]))


def outline_boxes(
    predictor: PromptPredictor, image_rgb: np.ndarray, boxes: Sequence[DetectedBox], score_threshold: float
) -> list[Instance]:
    """The object in each box that reaches the threshold, with the box's class and score."""
    chosen = [box for box in boxes if box.score >= score_threshold]
    outlined = predictor.image(image_rgb).prompt_boxes([box.box_xyxy for box in chosen])
    return [replace(instance, label=box.label, score=box.score) for instance, box in zip(outlined, chosen, strict=True)]
