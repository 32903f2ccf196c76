"""One detected object, as every other room of the house sees it (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class ProbabilityPatch:
    """The mask's probabilities as the network gave them, before they became a mask of the image.

    Attributes:
        values: float32 (h, w), from edge to edge of the box.
        box_xyxy: left, top, right, bottom in continuous pixels of the image; sampled bilinearly at pixel centres, as
            detectron2's `paste_masks_in_image` does, the values give the mask where they are at least one half.
    """

    values: np.ndarray
    box_xyxy: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Instance:
    """A refined detection on one image.

    Attributes:
        box_xyxy: left, top, right, bottom in continuous pixels of the (EXIF-transposed) image.
        label: class name, as the model's checkpoint spells it.
        score: detection confidence in [0, 1].
        mask_hw: bool array of the whole image's height x width.
        uncertainty: in [0, 1]; 0 when every refined boundary pixel is certain. Orders images for active learning.
        incoherent_nodes: quadtree nodes that were found incoherent, on all levels together; None when not known.
        probabilities: of the mask; None when they are not known, as for objects joined from several tiles.
    """

    box_xyxy: tuple[float, float, float, float]
    label: str
    score: float
    mask_hw: np.ndarray
    uncertainty: float = 0.0
    incoherent_nodes: int | None = None
    probabilities: ProbabilityPatch | None = None

    def __post_init__(self) -> None:
        if self.mask_hw.ndim != 2 or self.mask_hw.dtype != np.bool_:
            found = f"{self.mask_hw.dtype} of shape {self.mask_hw.shape}"
            raise ValueError(f"mask_hw must be a bool array of height x width, got {found}")
