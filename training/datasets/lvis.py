"""LVIS: COCO's format and images, with other names for the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.datasets.coco import CocoSet

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
