"""Snapshots: annotated images frozen as an immutable set that is named by the hash of its content.

    FOLDER/<digest>/
        manifest.json      digest, project, classes, counts, newest_annotation_at, annotation_ids, created
        train.json         COCO; images[]: file_name, sha256, task_id, annotation_ids; annotations[]: RLE segmentation,
        holdout.json       correction, weight, moved_band (RLE or null), box_only, region_ids
        images/<sha256>.*  each decodes to the pixels whose hash is its name
        corrections.json, report.md, pictures/

What is held out: `training.snapshots.holdout`. Masks are compressed RLE, so that a snapshot gives back the very masks
that were annotated.

Shapes: H, W image size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from training.datasets import CocoSet

MANIFEST = "manifest.json"
FILES = {"train": "train.json", "holdout": "holdout.json"}


class SnapshotError(ValueError):
    """A folder that is no snapshot, or not the one that its name says; the message says what, where and the fix."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot on disk.

    Attributes:
        directory: where it lies.
        manifest: its manifest.json.
    """

    directory: Path
    manifest: Json = field(repr=False)

    @property
    def digest(self) -> str:
        """Hash of its content."""
        return str(self.manifest["digest"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the categories."""
        return tuple(self.manifest["classes"])

    @property
    def images(self) -> Path:
        """Folder of the image files."""
        return self.directory / "images"

    def annotation_file(self, part: str) -> Path:
        """COCO file of "train" or "holdout"."""
        return self.directory / FILES[part]

    def coco(self, part: str) -> Json:
        """The COCO records of "train" or "holdout"."""
        records: Json = _read_json(self.annotation_file(part))
        return records

    def open_set(self, part: str) -> CocoSet:
        """Images and masks of "train" or "holdout"."""
        return CocoSet(self.annotation_file(part), self.images)


def open_snapshot(directory: Path) -> Snapshot:
    """Open a snapshot after checking that its records are what its digest says, and that its images are there.

    Raises:
        SnapshotError: a file is missing or was changed.
    """
    manifest = _read_json(directory / MANIFEST)
    snapshot = Snapshot(directory, manifest)
    sets = {part: snapshot.coco(part) for part in FILES}
    digest = digest_of(sets["train"], sets["holdout"], float(manifest["holdout_share"]))
    if digest != manifest["digest"]:
        raise SnapshotError(
            f"{directory} has the content {digest}, its manifest says {manifest['digest']}: it was changed or copied "
            "in part; snapshots are immutable, copy it or take it again"
        )
    for image in (image for coco in sets.values() for image in coco["images"]):
        if not (path := snapshot.images / image["file_name"]).is_file():
            raise SnapshotError(f"the image {path} of a snapshot is missing; copy or take the snapshot again")
    return snapshot


def _read_json(path: Path) -> Json:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SnapshotError(f"{path.parent} is no snapshot: {path.name} is missing; give a folder of one") from error
    except (OSError, ValueError) as error:
        raise SnapshotError(f"{path} is damaged ({error}); copy or take the snapshot again") from error
    if not isinstance(value, dict):
        raise SnapshotError(f"{path} holds a {type(value).__name__}, expected an object; take the snapshot again")
    return value


Json = dict[str, Any]
#: What `digest_of` leaves out: ids of Label Studio, and names of files, whose format may differ for the same pixels.
_NOT_CONTENT = ("task_id", "annotation_ids", "region_ids", "file_name")


@dataclass(frozen=True, slots=True, eq=False)
class SnapshotObject:
    """One annotated object.

    Attributes:
        label: one of the snapshot's classes.
        mask_hw: bool, H x W, not empty.
        correction: "kept", "moved", "relabelled" or "added".
        weight: in finetuning.
        moved_band_hw: bool, H x W, where people moved the outline; None where they did not.
        region_ids: its parts in Label Studio.
        disputed: annotators did not agree on it: `iscrowd`, neither trained on nor counted as background.
        box_only: only a box was drawn; the mask is that box.
    """

    label: str
    mask_hw: np.ndarray
    correction: str = "added"
    weight: float = 1.0
    moved_band_hw: np.ndarray | None = None
    region_ids: tuple[str, ...] = ()
    disputed: bool = False
    box_only: bool = False


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image of a snapshot, ready to be written: its `images` entry and its `annotations`, without their ids."""

    sha256: str
    image: Json
    annotations: tuple[Json, ...]


def pixels_sha256(image_rgb: np.ndarray) -> str:
    """sha256 of an image's content: of its size and of its decoded pixels (uint8 H x W x 3), in hexadecimal.

    The same picture uploaded again, under another name or in another lossless format, has the same one.
    """
    height, width = image_rgb.shape[:2]
    content = hashlib.sha256(f"{height}x{width}:".encode())
    content.update(np.ascontiguousarray(image_rgb).data)
    return content.hexdigest()


def image_record(
    image_rgb: np.ndarray,
    objects: Sequence[SnapshotObject],
    classes: Sequence[str],
    *,
    task_id: int = 0,
    annotation_ids: Sequence[int] = (),
) -> ImageRecord:
    """Encode the objects of an image; categories are numbered from 1 in the order of the classes.

    Raises:
        ValueError: an object's label is not a class, or its mask is empty or of another size than the image.
    """
    sha256, (height, width) = pixels_sha256(image_rgb), image_rgb.shape[:2]
    category_of = {name: number for number, name in enumerate(classes, start=1)}
    for number, drawn in enumerate(objects):
        if drawn.label not in category_of or drawn.mask_hw.shape != (height, width) or not drawn.mask_hw.any():
            raise ValueError(
                f"object {number} of image {sha256[:12]} is a {drawn.label!r} with a mask of {drawn.mask_hw.shape} and "
                f"{int(drawn.mask_hw.sum())} pixels; expected one of {', '.join(classes)} and a mask of "
                f"{(height, width)} with at least one pixel"
            )
    annotations = [_annotation(drawn, category_of[drawn.label]) for drawn in objects]
    annotations.sort(key=lambda annotation: _canonical({**annotation, "region_ids": []}))
    image = {
        "height": height,
        "width": width,
        "sha256": sha256,
        "task_id": task_id,
        "annotation_ids": sorted(annotation_ids),
    }
    return ImageRecord(sha256, image, tuple(annotations))


def coco_file(records: Sequence[ImageRecord], classes: Sequence[str], first_image_id: int = 1) -> Json:
    """A COCO data set of records in the order of their content hashes; ids count from 1 in that order."""
    images: list[Json] = []
    annotations: list[Json] = []
    for record in sorted(records, key=lambda record: record.sha256):
        image_id = first_image_id + len(images)
        images.append({"id": image_id, **record.image})
        for entry in record.annotations:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **entry})
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def digest_of(train: Json, holdout: Json, holdout_share: float) -> str:
    """sha256 over everything that training can see: pixels, classes, masks, weights, bands and the split.

    No time, no id of Label Studio and no order enters, so identical data has an identical digest.
    """
    content = {"train": _content(train), "holdout": _content(holdout), "holdout_share": float(holdout_share)}
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def encode_rle(mask_hw: np.ndarray) -> Json:
    """Compressed RLE of a bool H x W mask, as JSON holds it."""
    encoded = coco_mask.encode(np.asfortranarray(mask_hw, dtype=np.uint8))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """Bool H x W mask of a compressed RLE."""
    mask: np.ndarray = coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")})
    return mask.astype(bool)


def _annotation(drawn: SnapshotObject, category_id: int) -> Json:
    rle = encode_rle(drawn.mask_hw)
    band_hw = drawn.moved_band_hw
    return {
        "category_id": category_id,
        "segmentation": rle,
        "area": float(coco_mask.area(rle)),
        "bbox": [float(edge) for edge in coco_mask.toBbox(rle)],
        "iscrowd": int(drawn.disputed),
        "correction": drawn.correction,
        "weight": float(drawn.weight),
        "moved_band": encode_rle(band_hw) if band_hw is not None and band_hw.any() else None,
        "box_only": drawn.box_only,
        "region_ids": list(drawn.region_ids),
    }


def _content(coco: Json) -> Json:
    return {
        key: [{name: value for name, value in entry.items() if name not in _NOT_CONTENT} for entry in entries]
        for key, entries in coco.items()
    }


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
