"""Boxes of any detector, outlined by the promptable model: `transfiner predict --boxes`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.instance import Instance
from training.metrics.coco_schema import read_json

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

    The image is `file_name`, with or without folders, or `image_id` as `transfiner predict` numbers images, or the
    file's name as text; the class is `category`, or `category_id` as COCO numbers its classes.

    Args:
        image_id_of: (file, its place among all) -> COCO's image id.

    Raises:
        ValueError: it is no such list; names the first wrong record.
    """

    def __init__(self, file: Path, image_id_of: Callable[[Path, int], int], names: dict[int, str]) -> None:
        self._file, self._image_id_of = file, image_id_of
        self._of_image: dict[str, list[DetectedBox]] = defaultdict(list)
        self._asked: set[str] = set()
        records = read_json(file)
        if not isinstance(records, list):
            raise ValueError(f"{file} holds a {type(records).__name__}, expected a list of COCO results")
        for number, record in enumerate(records):
            try:
                image = record["file_name"] if "file_name" in record else record["image_id"]
                if not isinstance(image, str | int):
                    raise TypeError(f"its image is {image!r:.40}")
                self._of_image[_key(image)].append(_detected(record, names))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{file}, record {number}: {error!r}; expected bbox [x, y, width, height], score, image_id or "
                    "file_name, category_id or category"
                ) from error
        self._of_name: dict[str, list[str]] = defaultdict(list)
        for key in self._of_image:
            self._of_name[key.rpartition("/")[2]].append(key)
        self.labels = tuple(dict.fromkeys(box.label for boxes in self._of_image.values() for box in boxes))

    def boxes(self, file: Path, number: int) -> list[DetectedBox]:
        """The boxes of an image, the best score first."""
        path = _key(file.as_posix())
        ends = [path, *(path.split("/", n)[-1] for n in range(1, path.count("/") + 1))]
        same_name = self._of_name.get(file.name, [])
        keys = [*ends, *(same_name if len(same_name) == 1 else ()), file.stem, _key(self._image_id_of(file, number))]
        key = next((key for key in keys if key in self._of_image), "")
        self._asked.add(key)
        return sorted(self._of_image.get(key, []), key=lambda box: -box.score)

    def left_out(self) -> str:
        """Which boxes were of none of the images so far; "" where there are none."""
        others = sorted(self._of_image.keys() - self._asked)
        if not others:
            return ""
        return f"{len(others)} images of {self._file} are none of those given, such as {others[0]!r:.80}"


def _key(image: str | int) -> str:
    """An image's name with slashes, or its number as text without leading zeros."""
    text = str(image).strip().replace("\\", "/").removeprefix("./")
    return str(int(text)) if text.isascii() and text.isdigit() else text


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
