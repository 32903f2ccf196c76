"""Snapshots of pictures that tests draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from training.snapshots.format import SnapshotObject, SnapshotWriter, image_record
from training.snapshots.holdout import HOLDOUT_SHARE


def write_snapshot(
    images: Iterable[tuple[np.ndarray, Sequence[SnapshotObject]]],
    folder: Path,
    *,
    classes: Sequence[str],
    project: str = "",
    holdout_share: float = HOLDOUT_SHARE,
) -> Path:
    """A snapshot of images (uint8 H x W x 3) with their objects, without a report."""
    with SnapshotWriter(folder, classes, project=project, holdout_share=holdout_share) as writer:
        for image_rgb, objects in images:
            writer.add(image_record(image_rgb, objects, classes), image_rgb)
        return writer.finish()
