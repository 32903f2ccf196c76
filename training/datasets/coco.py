"""Any set in COCO's format.

LVIS: COCO's format and images, with other names for the files.

Which annotations of a COCO file can be used: the bad ones are reported and left out.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from pycocotools.coco import COCO

from training.datasets.problems import Policy, Problems
from training.datasets.sample import Sample
from training.metrics.coco_schema import is_integer, is_number
from training.metrics.rle import well_formed


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


_COCO_NAME = 16  # characters of 000000266409.jpg


@dataclass
class LvisSet(CocoSet):
    """LVIS v0.5 (``COCO_val2014_000000266409.jpg``) or v1 (``coco_url``) over COCO's 2017 images.

    Raises:
        FileNotFoundError, ValueError, BadAnnotationError: as `CocoSet`.
    """

    def image_path(self, image_id: int) -> Path:
        """Below `images`, with or without the folder of the split, which v1 names in its URLs."""
        record = self._coco.loadImgs(image_id)[0]
        address = str(record.get("coco_url", ""))
        name = str(record["file_name"])[-_COCO_NAME:] if "file_name" in record else address.rpartition("/")[2]
        folder = address.split("/")[-2] if address.count("/") > 1 else ""
        nested = self.images / folder / name
        return nested if folder and not (self.images / name).is_file() and nested.is_file() else self.images / name


Record = dict[str, Any]
_SLACK_PX = 1.0  # COCO's own boxes leave their images by rounding


def usable(dataset: Record, file: Path, problems: Problems) -> Record:
    """The dataset without annotations that cannot be right; of several polygons the bad ones alone are left out."""
    images = {one["id"]: one for one in dataset["images"]}
    categories = {one["id"] for one in dataset["categories"]}
    kept = []
    for one in dataset.get("annotations", []):
        record = f"annotation {one.get('id')}"
        fault = _fault(one, images, categories)
        if fault is not None:
            problems.note(file, record, *fault)
            continue
        polygons = one["segmentation"]
        if isinstance(polygons, list):
            good = [polygon for polygon in polygons if not _degenerate(polygon)]
            if len(good) < len(polygons):
                left = f"{len(polygons) - len(good)} of {len(polygons)} polygons enclose nothing"
                problems.note(file, record, "degenerate polygon", left)
            if not good:
                continue
            one = one | {"segmentation": good}
        kept.append(one)
    return dataset | {"annotations": _with_whole_masks(kept, images, file, problems)}


def _fault(one: Record, images: dict[int, Record], categories: set[int]) -> tuple[str, str] | None:
    if one.get("image_id") not in images:
        return "unknown image", f"image_id {one.get('image_id')!r} is not among the images"
    if one.get("category_id") not in categories:
        return "unknown category", f"category_id {one.get('category_id')!r} is not among the categories"
    if not isinstance(one.get("segmentation"), list | dict) or not one["segmentation"]:
        return "no mask", f"segmentation is {str(one.get('segmentation'))[:40]}"
    image = images[one["image_id"]]
    box, height, width = one.get("bbox"), image.get("height"), image.get("width")
    if box is None or height is None or width is None:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return "box outside", f"bbox {str(box)[:60]} is not [x, y, width, height]"
    x, y, w, h = box
    inside = x >= -_SLACK_PX and y >= -_SLACK_PX and x + w <= width + _SLACK_PX and y + h <= height + _SLACK_PX
    if w <= 0 or h <= 0 or not inside:
        return "box outside", f"bbox {box} in an image of {width} x {height}"
    return None


def _degenerate(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(is_number, polygon)):
        return True
    x, y = np.array(polygon, float).reshape(-1, 2).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2 < 1e-6


def _with_whole_masks(records: list[Record], images: dict[int, Record], file: Path, problems: Problems) -> list[Record]:
    """Without run lengths that do not fit their image: pycocotools would write outside its memory."""
    packed = [one for one in records if isinstance(one["segmentation"], dict)]
    counts = [one["segmentation"].get("counts") for one in packed]
    pixels = [math.prod((images[one["image_id"]].get(side) or 0) for side in ("height", "width")) for one in packed]
    texts = [one.encode("utf-8", "replace") if isinstance(one, str) else b"" for one in counts]
    fine = well_formed(texts, np.array(pixels, np.int64))
    broken = set()
    for one, runs, size, good in zip(packed, counts, pixels, fine, strict=True):
        if isinstance(runs, list):
            good = all(map(is_integer, runs)) and min(runs, default=0) >= 0 and sum(runs) == size
        shape = [images[one["image_id"]].get(side) for side in ("height", "width")]
        if not good or one["segmentation"].get("size") != shape:
            broken.add(id(one))
            problems.note(file, f"annotation {one.get('id')}", "broken mask", f"the RLE does not fill {shape} pixels")
    return [one for one in records if id(one) not in broken]
