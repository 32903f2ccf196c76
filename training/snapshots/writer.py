"""Writing snapshots: images are collected one by one, and the whole moves into place at once."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.snapshots.format import FILES, MANIFEST, ImageRecord, Json, SnapshotError, coco_file, digest_of
from training.snapshots.holdout import HOLDOUT_SHARE, holdout_hashes


class SnapshotWriter:
    """Collects images, then writes them as one snapshot; nothing of it is seen before it is whole.

    Use as a context manager: what was collected is removed at its end unless `finish` moved it into place.

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
        """Take in an image.

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
        """Content hashes of the images taken in so far that are held out."""
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
        held = [record for record in records if record.sha256 in hashes]
        train = [record for record in records if record.sha256 not in hashes]
        # Image ids go on in the second file, so that they are unique in the snapshot.
        sets = {
            "train": coco_file(train, self.classes),
            "holdout": coco_file(held, self.classes, first_image_id=len(train) + 1),
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
