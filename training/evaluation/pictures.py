"""Pictures of predictions: image, coarse masks, refined masks and truth side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from training.datasets import Sample

if TYPE_CHECKING:  # drawing needs no torch
    from detectron2.structures import Instances

_COLOURS = np.array(
    [[230, 60, 60], [60, 180, 75], [60, 110, 235], [245, 190, 40], [170, 60, 220], [40, 200, 210], [250, 130, 40]]
)


def tinted(image: np.ndarray, masks: np.ndarray, colours: np.ndarray | None = None) -> np.ndarray:
    """Tint bool N x H x W masks over an RGB uint8 image and draw their inner outline; returns a new image."""
    picture = image.astype(np.float32)
    for index, mask in enumerate(masks):
        colour = _COLOURS[(colours[index] if colours is not None else index) % len(_COLOURS)]
        picture[mask] = picture[mask] * 0.5 + colour * 0.5
        inner = mask.copy()
        inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        picture[mask & ~inner] = colour
    return picture.astype(np.uint8)


class Comparison:
    """Rows of truth, coarse masks and refined masks of the first samples it is shown.

    Args:
        rows: most samples it keeps; least_score: of the detections it draws.
    """

    def __init__(self, rows: int = 4, least_score: float = 0.5) -> None:
        self.rows = rows
        self.least_score = least_score
        self.pictures: list[list[np.ndarray]] = []

    def __call__(self, sample: Sample, instances: Instances) -> None:
        """Add a row, if there is room. ``instances`` has ``pred_masks`` and ``pred_coarse_masks``."""
        if len(self.pictures) >= self.rows:
            return
        shown = instances[instances.scores >= self.least_score]
        colours = shown.pred_classes.numpy()
        kinds = [
            (sample.masks, sample.classes),
            (shown.pred_coarse_masks.numpy().astype(bool), colours),
            (shown.pred_masks.numpy().astype(bool), colours),
        ]
        self.pictures.append([tinted(sample.image, masks, by_class) for masks, by_class in kinds])

    def save(self, path: Path) -> None:
        """Write the rows as one picture; the suffix tells the format."""
        path.parent.mkdir(parents=True, exist_ok=True)
        in_rows(self.pictures).save(path)


def in_rows(rows: list[list[np.ndarray]], gap_px: int = 4) -> Image.Image:
    """Pictures in rows, white in between; a column is as wide as its widest picture, a row as high as its highest."""
    widths = [max(row[x].shape[1] for row in rows if x < len(row)) for x in range(max(map(len, rows)))]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    size = (sum(widths) + gap_px * (len(widths) - 1), sum(heights) + gap_px * (len(heights) - 1))
    sheet = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            place = (sum(widths[:x]) + gap_px * x, sum(heights[:y]) + gap_px * y)
            sheet.paste(Image.fromarray(picture), place)
    return sheet
