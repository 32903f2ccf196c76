"""Snapshots: annotated images frozen as an immutable set that is named by the hash of its content.

    FOLDER/<digest>/
        manifest.json      digest, project, classes, counts, newest_annotation_at, annotation_ids, created
        train.json         COCO; images[]: file_name, sha256, task_id, annotation_ids; annotations[]: RLE segmentation,
        holdout.json       correction, weight, moved_band (RLE or null), box_only, region_ids
        images/<sha256>.*  each decodes to the pixels whose hash is its name
        corrections.json, report.md, pictures/

An image is in the hold-out for ever, or never: its content hash alone decides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.datasets import CocoSet
from training.snapshot_records import Json, digest_of, pixels_sha256

HOLDOUT_SHARE = 0.2
MANIFEST = "manifest.json"
FILES = {"train": "train.json", "holdout": "holdout.json"}


class SnapshotError(ValueError):
    """A folder that is no snapshot, or not the one that its name says; the message says what, where and the fix."""


def is_holdout(sha256: str, share: float = HOLDOUT_SHARE) -> bool:
    """Whether an image is held out, by its content hash: about `share` of all images."""
    return int(sha256[:16], 16) < share * 2**64


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


def open_snapshot(directory: Path, *, check_pixels: bool = False) -> Snapshot:
    """Open a snapshot after checking that it is what its digest says.

    Args:
        directory: of one snapshot.
        check_pixels: decode every image and compare its hash as well.

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
        _check_image(snapshot.images / image["file_name"], image["sha256"], check_pixels)
    return snapshot


def _check_image(path: Path, sha256: str, check_pixels: bool) -> None:
    if not path.is_file():
        raise SnapshotError(f"the image {path} of a snapshot is missing; copy or take the snapshot again")
    if check_pixels:
        found = pixels_sha256(pillow_pixels(path))
        if found != sha256:
            raise SnapshotError(f"{path} has pixels with the hash {found}, expected {sha256}; take the snapshot again")


def pillow_pixels(file: Any) -> np.ndarray:
    """RGB uint8 (H, W, 3) of an image file, as `CocoSet` reads it."""
    from PIL import ImageOps

    with Image.open(file) as picture:
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


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
