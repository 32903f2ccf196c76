"""What `transfiner predict` makes of an image's instances, one writer a format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from xml.sax.saxutils import quoteattr

import numpy as np

from backend.coco_results import category_ids_of, coco_results, image_id_of
from backend.overlay import draw_overlay
from integration.label_config import LabelConfig, parse_label_config
from integration.regions import instances_to_prediction
from model.instance import Instance


@dataclass(frozen=True)
class OutlinedImage:
    """An image file, its place among all of the command (from 0), its pixels (H x W x 3) and what was found."""

    file: Path
    number: int
    image_rgb: np.ndarray
    instances: Sequence[Instance]


class PredictionWriter(Protocol):
    """Takes images one by one; `records` is what is printed as JSON in the end."""

    records: list[Any]

    def add(self, outlined: OutlinedImage) -> None:
        """Take one image."""
        ...


class CocoWriter:
    """COCO results, and ids that are the same for every image."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.records: list[Any] = []
        self._category_ids = category_ids_of(labels)

    def add(self, outlined: OutlinedImage) -> None:
        """Append a record an instance."""
        image_id = image_id_of(outlined.file, outlined.number)
        self.records += coco_results(outlined.file, image_id, outlined.instances, self._category_ids)


class LabelStudioWriter:
    """Tasks with a prediction, ready for Label Studio's import."""

    def __init__(self, label_config: LabelConfig, version: str, tolerance_px: float) -> None:
        label_config.require_supported()
        self.records: list[Any] = []
        self._label_config = label_config
        self._version = version
        self._tolerance_px = tolerance_px

    def add(self, outlined: OutlinedImage) -> None:
        """Append a task whose image is the file's path, as it was given."""
        height, width = outlined.image_rgb.shape[:2]
        prediction = instances_to_prediction(
            outlined.instances,
            self._label_config,
            width=width,
            height=height,
            model_version=self._version,
            tolerance_px=self._tolerance_px,
            seed=str(outlined.file),
        )
        data = {self._label_config.value_key: str(outlined.file)}
        self.records.append({"data": data, "predictions": [prediction]})


class OverlayWriter:
    """A PNG an image in `folder`, named like the image."""

    def __init__(self, folder: Path) -> None:
        self.records: list[Any] = []
        self._folder = folder

    def add(self, outlined: OutlinedImage) -> None:
        """Write the picture; images of the same name in different folders get a number."""
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"{outlined.file.stem}.png"
        if str(target) in self.records:
            target = self._folder / f"{outlined.file.stem}-{outlined.number + 1}.png"
        draw_overlay(outlined.image_rgb, outlined.instances).save(target)
        self.records.append(str(target))


def read_label_config(file: Path | None, labels: Sequence[str]) -> LabelConfig:
    """The label config in a file; polygons with the model's own labels if there is no file."""
    if file is not None:
        return parse_label_config(file.read_text(encoding="utf-8"))
    tags = "".join(f"<Label value={quoteattr(label)}/>" for label in labels)
    return parse_label_config(
        '<View><Image name="image" value="$image"/>'
        f'<PolygonLabels name="label" toName="image">{tags}</PolygonLabels></View>'
    )
