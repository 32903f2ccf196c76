"""When memory runs out: the same image at a fraction of its size, so that somebody gets an outline at all."""

from __future__ import annotations

import dataclasses
import logging
import sys

import numpy as np
from PIL import Image

from model.instance import Instance

log = logging.getLogger(__name__)
# Tried one after the other.
FACTORS = (2, 4)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether smaller input may help; torch's own errors are told by name, since torch is not imported here."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def release_memory() -> None:
    """Give the GPU's cached blocks back, where torch is in use."""
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


def shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """HxWx3 uint8 to about H/factor x W/factor."""
    height, width = image.shape[:2]
    size = (max(1, width // factor), max(1, height // factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def grown(instance: Instance, height: int, width: int) -> Instance:
    """An instance of the shrunk image in the pixels of the whole one."""
    small_height, small_width = instance.mask_hw.shape
    rows = np.arange(height) * small_height // height
    columns = np.arange(width) * small_width // width
    scale = np.array([width / small_width, height / small_height] * 2)
    box = np.asarray(instance.box_xyxy) * scale
    return dataclasses.replace(
        instance,
        box_xyxy=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
        mask_hw=instance.mask_hw[rows][:, columns],
        probabilities=None,
    )
