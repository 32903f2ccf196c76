"""From a sample to what the network reads: augmentation, boxes of visible masks, detectron2's dict.

The order of samples and every random choice follow from (seed, position in the run) alone, so a resumed run sees
what an uninterrupted one would have seen, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.structures import BitMasks, Boxes, Instances
from torch.utils.data import DataLoader, Dataset

from training import processes
from training.datasets import AnySet, Sample, open_set

Record = dict[str, Any]


class TrainingSamples(Dataset[Record]):
    """Position in the run -> network input, over one or several sets that share their classes."""

    def __init__(self, sets: Sequence[AnySet], cfg: CfgNode, *, seed: int) -> None:
        names = {one.class_names for one in sets}
        if len(names) != 1:
            raise ValueError(
                f"the training sets need the same classes in the same order, got {sorted(names)}"
            )
        self.sets, self.seed, self.format = sets, seed, cfg.INPUT.FORMAT
        self.class_names = names.pop()
        self.augmentations = build_augmentation(cfg, is_train=True)
        if cfg.TRAINING.FLIP_VERTICAL:
            self.augmentations.insert(0, T.RandomFlip(horizontal=False, vertical=True))
        self.total = sum(len(one) for one in sets)

    def __len__(self) -> int:
        return self.total

    def index_at(self, position: int) -> int:
        """Which sample the run shows at a position: each epoch a permutation of its own."""
        epoch, place = divmod(position, self.total)
        if self.total >= 100_000:  # generated scenes: all different anyway, no permutation to hold
            return place
        return int(np.random.default_rng((self.seed, epoch)).permutation(self.total)[place])

    def __getitem__(self, position: int) -> Record:
        index = self.index_at(position)
        for one in self.sets:
            if index < len(one):
                return to_network_input(
                    one[index], self.augmentations, self.format, seed=(self.seed, position)
                )
            index -= len(one)
        raise IndexError(f"position {position}")


def to_network_input(
    sample: Sample,
    augmentations: Sequence[T.Augmentation],
    image_format: str,
    *,
    seed: tuple[int, int] | None = None,
) -> Record:
    """detectron2's dict: image (C x H x W uint8), height, width, image_id, instances with boxes, classes, bit masks.

    Crowd regions and masks that augmentation emptied are left out.
    """
    state = np.random.get_state()
    if seed is not None:
        np.random.seed(np.random.SeedSequence(seed).generate_state(4))
    inputs = T.AugInput(np.array(sample.image))
    applied = T.AugmentationList(list(augmentations))(inputs)
    np.random.set_state(state)
    kept = np.flatnonzero(~sample.crowd)
    masks = [applied.apply_segmentation(sample.masks[index].astype(np.uint8)) for index in kept]
    image = inputs.image if image_format == "RGB" else inputs.image[..., ::-1]
    height, width = sample.image.shape[:2]
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "height": height,
        "width": width,
        "image_id": sample.image_id,
        "instances": _instances(masks, sample.classes[kept], inputs.image.shape[:2]),
    }


def _instances(masks: list[np.ndarray], classes: np.ndarray, size: tuple[int, int]) -> Instances:
    stacked = torch.from_numpy(np.array(masks, bool).reshape(-1, *size))
    instances = Instances(size)
    instances.gt_masks = BitMasks(stacked)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes() if len(stacked) else Boxes(torch.zeros(0, 4))
    instances.gt_classes = torch.from_numpy(classes)
    return instances[instances.gt_boxes.nonempty()]


class _Positions:
    """This process's share of every batch, from where the run stands, endlessly."""

    def __init__(self, batch: int, first_iteration: int) -> None:
        if batch % processes.count():
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {batch} is no multiple of the {processes.count()} processes"
            )
        self.batch, self.first = batch, first_iteration

    def __iter__(self) -> Iterator[list[int]]:
        start, step = self.first * self.batch + processes.rank(), processes.count()
        while True:
            yield list(range(start, start - processes.rank() + self.batch, step))
            start += self.batch


def training_samples(cfg: CfgNode) -> TrainingSamples:
    """The samples of `cfg.DATASETS.TRAIN`."""
    keys = cfg.TRAINING
    cache = Path(keys.SCENE_CACHE) if keys.SCENE_CACHE else None
    sets = [
        open_set(n, width=keys.SCENE_WIDTH, height=keys.SCENE_HEIGHT, cache=cache) for n in cfg.DATASETS.TRAIN
    ]
    return TrainingSamples(sets, cfg, seed=max(cfg.SEED, 0))


def training_loader(
    samples: TrainingSamples, cfg: CfgNode, *, first_iteration: int = 0
) -> DataLoader[Record]:
    """Batches as lists of network inputs, from iteration `first_iteration` on; never ends."""
    workers = cfg.DATALOADER.NUM_WORKERS
    return DataLoader(
        samples,
        batch_sampler=_Positions(cfg.SOLVER.IMS_PER_BATCH, first_iteration),
        num_workers=workers,
        collate_fn=list,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
