"""Snapshots: annotated images frozen as an immutable set that is named by the hash of its content.

    FOLDER/<digest>/
        manifest.json      digest, project, classes, counts, newest_annotation_at, annotation_ids, created
        train.json         COCO; images[]: file_name, sha256, task_id, annotation_ids; annotations[]: RLE segmentation,
        holdout.json       correction, weight, moved_band (RLE or null), box_only, region_ids
        images/<sha256>.*  each decodes to the pixels whose hash is its name
        corrections.json, report.md, pictures/

Images are collected one by one, and the finished folder is moved into place. The hold-out is chosen by
`training.snapshots.holdout`. Masks are compressed RLE, which reproduces the drawn masks exactly.

Shapes: H, W image size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from training.datasets import CocoSet
from training.snapshots.holdout import HOLDOUT_SHARE, holdout_hashes

MANIFEST = "manifest.json"
FILES = {"train": "train.json", "holdout": "holdout.json"}


class SnapshotError(ValueError):
    """A folder is no snapshot, or its content is not that of its digest; the message says what, where and the fix."""


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

    def coco(self, part: str) -> Json:
        """The COCO records of "train" or "holdout"."""
        records: Json = _read_json(self.directory / FILES[part])
        return records

    def open_set(self, part: str) -> CocoSet:
        """Images and masks of "train" or "holdout"."""
        return CocoSet(self.directory / FILES[part], self.images)


def open_snapshot(directory: Path) -> Snapshot:
    """Open a snapshot; checks its records by their digest, and that its images exist.

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
#: Fields outside the digest: ids of Label Studio, and names of files, whose format may differ for the same pixels.
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
    """Hash an image's content: hexadecimal sha256 of its size and its decoded pixels (uint8 H x W x 3).

    The same picture under another name or in another lossless format has the same hash.
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
    for number, item in enumerate(objects):
        if item.label not in category_of or item.mask_hw.shape != (height, width) or not item.mask_hw.any():
            raise ValueError(
                f"object {number} of image {sha256[:12]} is a {item.label!r} with a mask of {item.mask_hw.shape} and "
                f"{int(item.mask_hw.sum())} pixels; expected one of {', '.join(classes)} and a mask of "
                f"{(height, width)} with at least one pixel"
            )
    annotations = [_annotation(item, category_of[item.label]) for item in objects]
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
    """Build a COCO data set from records in the order of their content hashes; ids count from 1 in that order."""
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
    """sha256 over everything that training reads: pixels, classes, masks, weights, bands and the split.

    Times, ids of Label Studio and the order are left out, so identical data has an identical digest.
    """
    content = {"train": _content(train), "holdout": _content(holdout), "holdout_share": float(holdout_share)}
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def encode_rle(mask_hw: np.ndarray) -> Json:
    """Compressed RLE of a bool H x W mask, as JSON holds it."""
    rle = coco_mask.encode(np.asfortranarray(mask_hw, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """Bool H x W mask of a compressed RLE."""
    mask: np.ndarray = coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")})
    return mask.astype(bool)


def _annotation(item: SnapshotObject, category_id: int) -> Json:
    rle = encode_rle(item.mask_hw)
    band_hw = item.moved_band_hw
    return {
        "category_id": category_id,
        "segmentation": rle,
        "area": float(coco_mask.area(rle)),
        "bbox": [float(edge) for edge in coco_mask.toBbox(rle)],
        "iscrowd": int(item.disputed),
        "correction": item.correction,
        "weight": float(item.weight),
        "moved_band": encode_rle(band_hw) if band_hw is not None and band_hw.any() else None,
        "box_only": item.box_only,
        "region_ids": list(item.region_ids),
    }


def _content(coco: Json) -> Json:
    return {
        key: [{name: value for name, value in entry.items() if name not in _NOT_CONTENT} for entry in entries]
        for key, entries in coco.items()
    }


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class SnapshotWriter:
    """Collects images, then writes them as one snapshot, which appears in its place complete.

    Use as a context manager: the collected files are removed at its end unless `finish` moved them into place.

    Args:
        folder: where snapshots lie; each becomes a folder named by its digest.
        classes: names, in the order of the categories.
        holdout_share: expected share of images in the hold-out.
    """

    def __init__(
        self, folder: Path, classes: Sequence[str], *, project: str = "", holdout_share: float = HOLDOUT_SHARE
    ) -> None:
        if not 0 <= holdout_share < 1 or len(set(classes)) != len(classes) or not classes:
            raise ValueError(
                f"a snapshot needs distinct classes and a hold-out share in [0, 1), got classes {list(classes)} and "
                f"share {holdout_share}"
            )
        self.folder, self.classes, self.project = folder, tuple(classes), project
        self.holdout_share = holdout_share
        self._records: dict[str, ImageRecord] = {}
        self._unfinished = folder / f".unfinished-{os.getpid()}-{id(self):x}"

    def __enter__(self) -> SnapshotWriter:
        (self._unfinished / "images").mkdir(parents=True)
        return self

    def __exit__(self, *raised: object) -> None:
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def add(self, record: ImageRecord, image_rgb: np.ndarray, file: tuple[bytes, str] | None = None) -> None:
        """Add an image.

        Args:
            record: from `image_record`; replaces one of the same content.
            image_rgb: uint8, H x W x 3.
            file: bytes and suffix (".jpg") of a file that decodes to these pixels in Pillow; a PNG is written if None.
        """
        suffix = file[1] if file else ".png"
        path = self._unfinished / "images" / f"{record.sha256}{suffix}"
        for former in path.parent.glob(f"{record.sha256}.*"):
            former.unlink()
        if file:
            path.write_bytes(file[0])
        else:
            Image.fromarray(image_rgb).save(path, "PNG")
        image = {**record.image, "file_name": path.name}
        self._records[record.sha256] = ImageRecord(record.sha256, image, record.annotations)

    def holdout_hashes(self) -> frozenset[str]:
        """Content hashes of the held-out images among those added so far."""
        return holdout_hashes(self._records, self.holdout_share)

    def finish(
        self,
        *,
        newest_annotation_at: datetime | None = None,
        annotation_ids: Sequence[int] = (),
        extra: Mapping[str, Any] | None = None,
        report: Mapping[str, Any] | None = None,
        report_markdown: str = "",
        pictures: Mapping[str, Image.Image] | None = None,
    ) -> Path:
        """Write everything and move it into place.

        Args:
            report: becomes corrections.json; `report_markdown` report.md; `pictures` PNG files by name.

        Returns:
            `folder/<digest>`. A snapshot with the same digest that is there already is kept as it is.

        Raises:
            SnapshotError: there is no image in it.
        """
        if not self._records:
            raise SnapshotError(
                "a snapshot without a single image, expected at least one annotated task; annotate some images, or "
                "look at the reasons why all were left out"
            )
        sets = self._write_sets()
        digest = digest_of(sets["train"], sets["holdout"], self.holdout_share)
        manifest = {
            **(extra or {}),
            "digest": digest,
            "project": self.project,
            "classes": list(self.classes),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "newest_annotation_at": newest_annotation_at.isoformat() if newest_annotation_at else None,
            "holdout_share": self.holdout_share,
            "counts": _counts(sets, self.classes),
            "annotation_ids": sorted(set(annotation_ids)),
        }
        _write_json(self._unfinished / "corrections.json", report or {})
        (self._unfinished / "report.md").write_text(report_markdown, encoding="utf-8")
        (self._unfinished / "pictures").mkdir()
        for name, picture in (pictures or {}).items():
            picture.save(self._unfinished / "pictures" / name)
        _write_json(self._unfinished / MANIFEST, manifest)
        return self._move(digest)

    def _write_sets(self) -> dict[str, Json]:
        records = list(self._records.values())
        hashes = self.holdout_hashes()
        holdout = [record for record in records if record.sha256 in hashes]
        train = [record for record in records if record.sha256 not in hashes]
        # Image ids go on in the second file, so that they are unique in the snapshot.
        sets = {
            "train": coco_file(train, self.classes),
            "holdout": coco_file(holdout, self.classes, first_image_id=len(train) + 1),
        }
        for name, coco in sets.items():
            _write_json(self._unfinished / FILES[name], coco)
        return sets

    def _move(self, digest: str) -> Path:
        target = self.folder / digest
        if not target.exists():
            try:
                self._unfinished.rename(target)
            except OSError:
                if not (target / MANIFEST).is_file():  # else another process was faster with the same data
                    raise
        return target


def _counts(sets: Mapping[str, Json], classes: Sequence[str]) -> Json:
    entries = [entry for coco in sets.values() for entry in coco["annotations"]]
    numbers = Counter(entry["category_id"] for entry in entries if not entry["iscrowd"])
    parts = {name: len(coco["images"]) for name, coco in sets.items()}
    images = sum(parts.values())
    return {
        "images": images,
        "train_images": parts["train"],
        "holdout_images": parts["holdout"],
        "empty_images": images - len({entry["image_id"] for entry in entries}),
        "objects": numbers.total(),
        "disputed": len({(entry["image_id"], *entry["region_ids"]) for entry in entries if entry["iscrowd"]}),
        "objects_by_class": {name: numbers[number] for number, name in enumerate(classes, start=1)},
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
