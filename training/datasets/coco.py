"""Any set in COCO's format, and LVIS: COCO's format and images, with other names for the files."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np
from pycocotools import mask as coco_mask

from model.images import read_header, turn_upright
from training.datasets.coco_records import CocoRecords, Record, is_ignored, mostly_outside, read_records
from training.datasets.sample import Policy, Problems, Sample
from training.metrics.coco import compressed
from training.metrics.coco_schema import RecordError, read_json


@dataclass
class CocoSet(Sequence[Sample]):
    """A set in COCO's format on disk; masks from polygons or either kind of RLE.

    Reading a sample raises ImageLeftOutError where its picture cannot be decoded or has another size than its record.
    Masks drawn on the unturned pixels of a picture with an EXIF orientation are turned with it.

    Raises:
        FileNotFoundError: the annotation file or (``missing="fatal"``, when a sample is read) an image is missing.
        ValueError: the annotation file is no COCO file.
        BadAnnotationError: ``missing="fatal"`` and an image is damaged.
    """

    annotations: Path
    images: Path
    missing: Policy = "fatal"
    class_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.problems = Problems()
        self.records: CocoRecords = read_records(self._records(), self.annotations, self.problems)
        self._join_repeated_files()
        self._basenames = Counter(_file_name(image).rpartition("/")[2] for image in self.records.images.values())
        self._image_ids = sorted(self.records.images)
        if self.missing == "skip":
            self._image_ids = [image_id for image_id in self._image_ids if self._is_there(image_id)]
        self.class_names = self.records.class_names
        self.category_ids = self.records.category_ids

    def _join_repeated_files(self) -> None:
        """Merge records of the same file and size into one image, else one's objects were background in the other."""
        first_image_of: dict[tuple[object, ...], int] = {}
        for image_id, image in sorted(self.records.images.items()):
            name = posixpath.normpath(_file_name(image) or str(image.get("coco_url")))
            former = first_image_of.setdefault((name, image["height"], image["width"]), image_id)
            if former != image_id:
                detail = f"{name} is image {former}, too; the annotations of both are read as of that one"
                self.problems.note(self.annotations, f"image {image_id}", "repeated file", detail, repaired=True)
                for annotation in self.records.annotations.pop(image_id):
                    self.records.annotations[former].append(annotation | {"image_id": former})
                del self.records.images[image_id]

    @property
    def object_count(self) -> int:
        """Number of objects, without ignored regions."""
        annotations = self.records.annotations
        return sum(not is_ignored(annotation) for image_id in self._image_ids for annotation in annotations[image_id])

    def classes_at(self, index: int) -> set[int]:
        """Classes of an image's annotations, read from the records without decoding a mask."""
        return {
            self.records.class_of[annotation["category_id"]]
            for annotation in self.records.annotations[self._image_ids[index]]
        }

    def _records(self) -> Any:
        return self._content("; give coco:ANNOTATIONS.json:IMAGES/")

    def _content(self, hint: str) -> Any:
        """Parsed JSON of the annotation file; `hint` ends the error where there is none."""
        if not self.annotations.is_file():
            raise FileNotFoundError(f"no annotation file {self.annotations}{hint}")
        try:
            return read_json(self.annotations)
        except RecordError as error:
            raise ValueError(f"{self.annotations} is no JSON: {error}") from error

    def _is_there(self, image_id: int) -> bool:
        path = self.image_path(image_id)
        if not is_file(path):
            detail = f"{str(path)[:200]} is not there; skipped"
            self.problems.note(self.annotations, f"image {image_id}", "missing file", detail)
            return False
        return True

    def image_path(self, image_id: int) -> Path:
        """Path of an image's file, there or not; backslashes and percent-encoding in its name are understood."""
        return self._first_of(file_names(str(self.records.images[image_id].get("file_name", ""))))

    def _first_of(self, names: Sequence[str]) -> Path:
        """The first name that is a file; a name without its folders only where no other record has the same."""
        for name in names:
            if is_file(self.images / name):
                return self.images / name
        for base in (name.rpartition("/")[2] for name in names):
            if self._basenames[normalize("NFD", base)] == 1 and is_file(self.images / base):
                return self.images / base
        return self.images / names[0]

    def __len__(self) -> int:
        return len(self._image_ids)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        image_id = self._image_ids[index]
        image = self.picture(image_id)
        objects = list(self.objects(image_id, image))
        masks = np.array([mask_hw for *_, mask_hw in objects], bool).reshape(-1, *image.shape[:2])
        classes = np.array([label for _, label, _ in objects], np.int64)
        crowd = np.array([is_ignored(annotation) for annotation, *_ in objects], bool)
        return Sample(image, masks, classes, crowd, int(image_id))

    def object_places(self, sample: Sample) -> list[str]:
        """The annotation of each object of a sample."""
        return [annotation["place"] for annotation, *_ in self.objects(sample.image_id, sample.image)]

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Ids of the images, in the order of the set."""
        return tuple(self._image_ids)

    def objects(self, image_id: int, image: np.ndarray) -> Iterator[tuple[Record, int, np.ndarray]]:
        """Go through annotation, class and upright mask (bool H x W) of an image.

        Regions of unknown class come as one mask for every class.

        Raises:
            ImageLeftOutError: the masks do not fit the picture.
        """
        truth_hw, orientation = self.drawn_on(image_id, image)
        of_no_class: list[tuple[Record, np.ndarray]] = []
        for annotation in self.records.annotations[image_id]:
            mask_hw = self.mask_of(annotation, truth_hw)
            if mask_hw is None:
                continue
            mask_hw = turn_upright(mask_hw, orientation)
            if annotation.get("every_class"):
                of_no_class.append((annotation, mask_hw))
            else:
                yield annotation, self.records.class_of[annotation["category_id"]], mask_hw
        if of_no_class:  # together: there may be a thousand classes
            anywhere_hw = np.any([mask_hw for _, mask_hw in of_no_class], axis=0)
            for label in range(len(self.class_names)):
                yield of_no_class[0][0], label, anywhere_hw

    def picture(self, image_id: int) -> np.ndarray:
        """RGB pixels (H, W, 3) of an image. Raises FileNotFoundError, ImageLeftOutError."""
        path = self.image_path(image_id)
        if not is_file(path):
            raise FileNotFoundError(f"image {image_id} of {self.annotations} is missing: {str(path)[:200]}")
        return self.problems.picture(path, self.missing)

    def drawn_on(self, image_id: int, image: np.ndarray) -> tuple[tuple[int, int], int]:
        """The size (H, W) that the masks were drawn on, and the EXIF orientation by which to turn them.

        Raises:
            ImageLeftOutError: the picture has another size, and EXIF does not explain it.
        """
        record, upright_hw = self.records.images[image_id], (image.shape[0], image.shape[1])
        stated_hw = (record["height"], record["width"])
        if stated_hw in ((None, None), upright_hw):
            return upright_hw, 1
        path = self.image_path(image_id)
        header = read_header(path)
        if header.orientation != 1 and stated_hw == header.stored_hw:
            detail = f"{path.name} is turned by EXIF {header.orientation}, its annotations are not: they are turned too"
            self.problems.note(self.annotations, f"image {image_id}", "turned image", detail, repaired=True)
            return header.stored_hw, header.orientation
        size, stated = (" x ".join(map(str, pair[::-1])) for pair in (upright_hw, stated_hw))
        detail = f"{path.name} is {size}, its record says {stated}; left out"
        raise self.problems.leave_out(self.annotations, f"image {image_id}", "other size", detail)

    def mask_of(self, annotation: Record, size_hw: tuple[int, int]) -> np.ndarray | None:
        """Mask of an annotation, bool H x W; None, and a problem noted, where nothing of it lies in the image."""
        mask_hw = rasterised(annotation, size_hw)
        if mask_hw is not None and mask_hw.any():
            # Where the record states a size, `read_records` has checked this already.
            is_stated = self.records.images[annotation["image_id"]]["height"] is not None
            if not is_stated and (outside := mostly_outside(annotation["segmentation"], *size_hw)):
                self.problems.note(self.annotations, annotation["place"], "outline outside", outside)
            return mask_hw
        box, detail, kind = annotation["box_inside"], "not one pixel of it lies in the image", "empty mask"
        if mask_hw is None:
            detail, kind = (
                f"the RLE has size {annotation['segmentation'].get('size')}, not {list(size_hw)}",
                "broken mask",
            )
        if box is not None and annotation["ignored"] is None:
            place_hw = rasterised(annotation | {"ignored": box}, size_hw)
            if place_hw is not None and place_hw.any():
                detail = f"{detail}; its box {box} is an ignored region"
                self.problems.note(self.annotations, annotation["place"], kind, detail)
                annotation["ignored"] = box
                return place_hw
        self.problems.note(self.annotations, annotation["place"], kind, f"{detail}; left out")
        return None


def rasterised(annotation: Record, size_hw: tuple[int, int]) -> np.ndarray | None:
    """Draw an annotation's mask, bool H x W; None where its run lengths have another size."""
    height, width = size_hw
    segmentation = annotation["segmentation"]
    if annotation["ignored"] is not None:
        x, y, w, h = annotation["ignored"]
        mask_hw = np.zeros(size_hw, bool)
        mask_hw[int(y) : int(np.ceil(min(y + h, height))), int(x) : int(np.ceil(min(x + w, width)))] = True
        return mask_hw
    if isinstance(segmentation, dict) and segmentation.get("size") != [height, width]:
        return None
    mask: np.ndarray = coco_mask.decode(compressed(segmentation, height, width))
    return mask.astype(bool)


def is_file(path: Path) -> bool:
    """Whether a path is an existing file; False for names that the system refuses (too long)."""
    try:
        return path.is_file()
    except OSError:
        return False


def _file_name(image: Record) -> str:
    return normalize("NFD", file_names(str(image.get("file_name", "")))[-1])


def file_names(name: str) -> list[str]:
    """Possible names of a file, likeliest first: as written, with slashes for backslashes, percent-decoded.

    Letters with accents may be one character or two: macOS writes two.
    """
    slashes = name.strip().replace("\\", "/")
    plain = unquote(slashes)
    return list(dict.fromkeys((name, slashes, plain, *(normalize(form, plain) for form in ("NFC", "NFD")))))


_COCO_NAME = 16  # characters of 000000266409.jpg


@dataclass
class LvisSet(CocoSet):
    """LVIS v0.5 (``COCO_val2014_000000266409.jpg``) or v1 (``coco_url``) over COCO's 2017 images.

    Raises:
        FileNotFoundError, ValueError, BadAnnotationError: as `CocoSet`.
    """

    def image_path(self, image_id: int) -> Path:
        """Below `images`, with or without the folder of the split, which v1 names in its URLs."""
        record = self.records.images[image_id]
        address = str(record.get("coco_url", ""))
        folder, name = (address.split("/")[-2] if address.count("/") > 1 else ""), address.rpartition("/")[2]
        names = []
        if isinstance(record.get("file_name"), str):
            spellings = file_names(record["file_name"])
            name = record["file_name"][-_COCO_NAME:] if record["file_name"].startswith("COCO_") else spellings[0]
            names = spellings
        return self._first_of(list(dict.fromkeys((name, *names, *([f"{folder}/{name}"] if folder else [])))))
