"""Detections in the form that Cityscapes' server takes, for tests that score them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_predictions(
    folder: Path, name: str, masks: Sequence[np.ndarray], labels: Sequence[int], scores: Sequence[float]
) -> None:
    """Write one image's detections as Cityscapes' server takes them; `name` as in frankfurt_000000_000294."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (mask, label, score) in enumerate(zip(masks, labels, scores, strict=True)):
        file = f"{name}_{index}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / file)
        lines.append(f"{file} {label} {score}\n")
    (folder / f"{name}.txt").write_text("".join(lines))
