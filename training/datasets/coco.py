"""Any set in COCO's format."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pycocotools.coco import COCO

from training.datasets.coco_checks import usable
from training.datasets.problems import Policy, Problems
from training.datasets.sample import Sample


@dataclass
class CocoSet(Sequence[Sample]):
    """A set in COCO's format on disk; masks from polygons or either kind of RLE.

    Raises:
        FileNotFoundError: the annotation file or (``missing="fatal"``, when it is asked for) an image is missing.
        ValueError: the annotation file is no COCO file.
        BadAnnotationError: ``bad="fatal"`` and an annotation cannot be right.
    """

    annotations: Path
    images: Path
    bad: Policy = "skip"
    missing: Policy = "fatal"
    class_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.problems = Problems(self.bad)
        self._coco = _index(usable(self._records(), self.annotations, self.problems))
        self._image_ids = sorted(self._coco.getImgIds())
        if self.missing == "skip":
            self._image_ids = [one for one in self._image_ids if self._is_there(one)]
        categories = self._coco.loadCats(sorted(self._coco.getCatIds()))
        self.class_names = tuple(category["name"] for category in categories)
        self.category_ids: tuple[int, ...] = tuple(category["id"] for category in categories)
        self._class_of = {category["id"]: index for index, category in enumerate(categories)}

    def _records(self) -> dict[str, Any]:
        if not self.annotations.is_file():
            raise FileNotFoundError(f"no annotation file {self.annotations}; give coco:ANNOTATIONS.json:IMAGES/")
        try:
            dataset = json.loads(self.annotations.read_bytes())
        except ValueError as error:
            raise ValueError(f"{self.annotations} is no JSON: {error}") from error
        if not isinstance(dataset, dict) or not {"images", "categories"} <= dataset.keys():
            raise ValueError(f"{self.annotations} is no COCO file: it needs images, annotations and categories")
        return dataset

    def _is_there(self, image_id: int) -> bool:
        path = self.image_path(image_id)
        if not path.is_file():
            self.problems.note(self.annotations, f"image {image_id}", "missing file", f"{path} is not there; skipped")
            return False
        return True

    def image_path(self, image_id: int) -> Path:
        """Where the file of an image should be."""
        return self.images / str(self._coco.loadImgs(image_id)[0]["file_name"])

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        image_id = self._image_ids[index]
        path = self.image_path(image_id)
        if not path.is_file():
            raise FileNotFoundError(f"image {image_id} of {self.annotations} is missing: {path}")
        with Image.open(path) as picture:
            image = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        found: list[dict[str, Any]] = self._coco.loadAnns(self._coco.getAnnIds(imgIds=[image_id]))
        masks = np.array([self._coco.annToMask(one) for one in found], bool).reshape(-1, *image.shape[:2])
        classes = np.array([self._class_of[one["category_id"]] for one in found], np.int64)
        crowd = np.array([bool(one.get("iscrowd", 0)) for one in found], bool)
        return Sample(image, masks, classes, crowd, int(image_id))


def _index(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
