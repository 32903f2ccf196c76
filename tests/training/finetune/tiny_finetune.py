"""A checkpoint and snapshots small enough to finetune in seconds; as a program: one finetuning that gets killed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.support.small_network import CLASSES, small_config
from tests.support.snapshots import write_snapshot
from training.snapshots.format import SnapshotObject

STEPS = 6
SIDE_PX = 72


def tiny_checkpoint(directory: Path) -> Path:
    """A network that trains a step in a blink."""
    import torch

    from model.checkpoints.checkpoint import save_checkpoint
    from model.network import build_network

    cfg = small_config()
    values = {
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MAX_SIZE_TRAIN": 96,
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
        "MODEL.RPN.CONV_DIMS": [16],
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
        "MODEL.TRANSFINER.SAMPLES_PER_LEVEL": 12,
        "MODEL.TRANSFINER.TRAIN_INSTANCE_LIMIT": 3,
        "MODEL.TRANSFINER.ENCODER_LAYERS": 1,
    }
    cfg.merge_from_list([part for pair in values.items() for part in pair])
    torch.manual_seed(0)
    metadata = {"name": "tiny", "version": "tiny-1", "classes": list(CLASSES)}
    save_checkpoint(directory, cfg, build_network(cfg), metadata)
    return directory


def tiny_snapshot(folder: Path, *, classes: Sequence[str], images: int, first: int = 0, holdout: float = 0.0) -> Path:
    """Pictures with a bright square each; its class alternates, and its right edge was moved."""
    pictures = [_picture(first + number, classes) for number in range(images)]
    return write_snapshot(pictures, folder, classes=classes, project="7", holdout_share=holdout)


def _picture(seed: int, classes: Sequence[str]) -> tuple[np.ndarray, list[SnapshotObject]]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    x, y, size = (int(n) for n in rng.integers((4, 4, 24), (24, 24, 40)))
    mask, band = np.zeros(image.shape[:2], bool), np.zeros(image.shape[:2], bool)
    mask[y : y + size, x : x + size] = True
    band[y : y + size, x + size - 2 : x + size + 2] = True
    image[mask] = 200
    label = classes[seed % len(classes)]
    return image, [SnapshotObject(label, mask, correction="moved", weight=0.5, moved_band_hw=band)]


def main(checkpoint: Path, snapshot: Path, out: Path) -> None:
    from training.finetune.finetune import finetune

    finetune(checkpoint, snapshot, out, settings=settings())


def settings(**more):
    """A run of a few steps whose every loss is written down; its state is saved every second step."""
    from training.finetune.plan import FinetuneSettings

    values = {"iterations": STEPS, "batch_size": 2, "save_period": 2, "log_period": 1, "threads": 1, "device": "cpu"}
    return FinetuneSettings(**(values | more))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
