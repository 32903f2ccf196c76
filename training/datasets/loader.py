"""Turn samples into network inputs (augmentation, boxes, detectron2's dict), and order them in a run.

The order of samples (by the sets' sizes or by given shares) and every random choice depend on (seed, position in the
run) alone, so a resumed run sees the same inputs as an uninterrupted one, whatever the number of workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.structures import BitMasks, Boxes, Instances
from torch.utils.data import DataLoader, Dataset

from training.datasets import AnySet, CocoSet, ImageLeftOutError, Sample, open_configured_set, usable_samples
from training.datasets.sample import SampleSet, WeightedSample

Record = dict[str, Any]


class TrainingSamples(Dataset[Record]):
    """Position in the run -> network input, over one or several sets that share their classes.

    Args:
        sets: with the same class names in the same order.
        shares: of the samples that come from each set; by default each sample is shown once an epoch.
    """

    def __init__(self, sets: Sequence[SampleSet], cfg: CfgNode, *, seed: int, shares: Sequence[float] = ()) -> None:
        names = {tuple(samples.class_names) for samples in sets}
        if len(names) != 1:
            raise ValueError(f"the training sets need the same classes in the same order, got {sorted(names)}")
        self.sets, self.seed, self.format = sets, seed, cfg.INPUT.FORMAT
        self.class_names = names.pop()
        self.augmentations = build_augmentation(cfg, is_train=True)
        if cfg.TRAINING.FLIP_VERTICAL:
            self.augmentations.insert(0, T.RandomFlip(horizontal=False, vertical=True))
        sizes = [len(samples) for samples in sets]
        self.total = sum(sizes)
        if self.total == 0:
            raise ValueError("the training sets hold no images")
        self.order = Mixture(sizes, shares, seed) if shares else SequentialOrder(sizes, seed)

    def __len__(self) -> int:
        return self.total

    def place_at(self, position: int) -> tuple[int, int]:
        """(set, index in it) that the run shows at a position."""
        return self.order.place_at(position)

    def __getitem__(self, position: int) -> Record:
        number, index = self.place_at(position)
        sample = next_usable(self.sets[number], index)
        return to_network_input(sample, self.augmentations, self.format, seed=(self.seed, position))


def next_usable(samples: SampleSet, index: int) -> Sample:
    """The sample of an index, or the first after it whose image is not left out (damaged, of another size).

    Raises:
        ValueError: every image of the set is left out.
    """
    for offset in range(len(samples)):
        try:
            return samples[(index + offset) % len(samples)]
        except ImageLeftOutError as error:
            reason = error
    raise ValueError(f"not one image of a training set can be used; the last: {reason}") from reason


def to_network_input(
    sample: Sample, augmentations: Sequence[T.Augmentation], image_format: str, *, seed: tuple[int, int] | None = None
) -> Record:
    """detectron2's dict: image (C x H x W uint8), height, width, image_id, instances with boxes, classes, bit masks.

    Masks that augmentation emptied are left out; crowd regions are merged into ``ignored`` (bool, H x W).
    A `WeightedSample` adds the fields that `model.mask_head.targets` reads.
    """
    state = np.random.get_state()
    if seed is not None:
        np.random.seed(np.random.SeedSequence(seed).generate_state(4))
    inputs = T.AugInput(np.array(sample.image))
    transform = T.AugmentationList(list(augmentations))(inputs)
    np.random.set_state(state)
    object_indices = np.flatnonzero(~sample.crowd)
    masks = [transform.apply_segmentation(sample.masks[index].astype(np.uint8)) for index in object_indices]
    image = inputs.image if image_format == "RGB" else inputs.image[..., ::-1]
    height, width = sample.image.shape[:2]
    weights = _weights(sample, object_indices, transform) if isinstance(sample, WeightedSample) else {}
    crowds: dict[str, Any] = {}
    if sample.crowd.any():
        crowd_hw = sample.masks[sample.crowd].any(0).astype(np.uint8)
        crowds["ignored"] = torch.from_numpy(transform.apply_segmentation(crowd_hw).astype(bool))
    return crowds | {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "height": height,
        "width": width,
        "image_id": sample.image_id,
        "instances": _instances(masks, sample.classes[object_indices], inputs.image.shape[:2], weights),
    }


def to_test_input(sample: Sample, cfg: CfgNode) -> Record:
    """detectron2's dict of a sample, resized as a configuration asks for in evaluation."""
    resize = [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
    return to_network_input(sample, resize, cfg.INPUT.FORMAT)


def _weights(sample: WeightedSample, object_indices: np.ndarray, transform: T.Transform) -> dict[str, Any]:
    weights = torch.from_numpy(sample.weights[object_indices].astype(np.float32))
    bands = [transform.apply_segmentation(sample.bands[index].astype(np.uint8)) for index in object_indices]
    fields = {"gt_weights": weights, "gt_band_weights": torch.full_like(weights, sample.band_weight)}
    return fields | ({"gt_bands": BitMasks(torch.from_numpy(np.array(bands, bool)))} if bands else {})


def _instances(
    masks: list[np.ndarray], classes: np.ndarray, size: tuple[int, int], fields: dict[str, Any]
) -> Instances:
    masks_nhw = torch.from_numpy(np.array(masks, bool).reshape(-1, *size))
    instances = Instances(size)
    instances.gt_masks = BitMasks(masks_nhw)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes() if len(masks_nhw) else Boxes(torch.zeros(0, 4))
    instances.gt_classes = torch.from_numpy(classes)
    for name, value in fields.items():
        instances.set(name, value)
    return instances[instances.gt_boxes.nonempty()]


class _Positions:
    """Positions of one process's share of every batch, from iteration `first_iteration` on, without end."""

    def __init__(self, batch: int, first_iteration: int, rank: int, processes: int) -> None:
        if batch % processes:
            raise ValueError(f"SOLVER.IMS_PER_BATCH {batch} is no multiple of the {processes} processes")
        self.batch, self.first, self.rank, self.processes = batch, first_iteration, rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in itertools.count(self.first):
            yield list(range(iteration * self.batch + self.rank, (iteration + 1) * self.batch, self.processes))


def training_samples(cfg: CfgNode) -> TrainingSamples:
    """The samples of `cfg.DATASETS.TRAIN`."""
    sets = [open_configured_set(name, cfg) for name in cfg.DATASETS.TRAIN]
    if not any(map(_holds_objects, sets)):
        raise ValueError(
            f"the training sets hold no object: {', '.join(cfg.DATASETS.TRAIN)}; expected annotations with masks, see "
            "transfiner data check"
        )
    return TrainingSamples(sets, cfg, seed=max(cfg.SEED, 0))


def _holds_objects(samples: AnySet) -> bool:
    if isinstance(samples, CocoSet):
        return samples.object_count > 0
    return any(not sample.crowd.all() for _, sample in usable_samples(samples))


def training_loader(
    samples: TrainingSamples, cfg: CfgNode, *, first_iteration: int = 0, rank: int = 0, processes: int = 1
) -> DataLoader[Record]:
    """Batches of the process with that rank as lists of network inputs, from `first_iteration` on; never ends."""
    workers = cfg.DATALOADER.NUM_WORKERS
    return DataLoader(
        samples,
        batch_sampler=_Positions(cfg.SOLVER.IMS_PER_BATCH, first_iteration, rank, processes),
        num_workers=workers,
        collate_fn=list,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
        # A loader draws a seed when it starts: from here, or a resumed run would be one random number ahead.
        generator=torch.Generator().manual_seed(0),
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


# A set of this many samples or more is not shuffled: endless generated scenes need no other order.
UNSHUFFLED = 1_000_000
# Positions of a run within which the sets have their shares, rounded to whole samples.
BLOCK = 20


class SequentialOrder:
    """The order of a run: every sample of every set once an epoch, shuffled anew each epoch.

    Args:
        sizes: of the sets, in samples.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        self.sizes, self.seed, self.total = tuple(sizes), seed, sum(sizes)

    def place_at(self, position: int) -> tuple[int, int]:
        """(set, index in the set) at a position of the run, 0 or more."""
        index = shuffled(position, self.total, self.seed)
        for number, size in enumerate(self.sizes):
            if index < size:
                return number, index
            index -= size
        raise IndexError(f"position {position} of sets of {self.sizes} samples")


class Mixture:
    """The order of a run that draws from sets by shares; each set has epochs of its own, a small one more of them.

    Args:
        sizes: of the sets, in samples. shares: of the samples that are shown, positive; scaled to a sum of 1.

    Raises:
        ValueError: not one positive share a set, or a set without samples.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], seed: int) -> None:
        if len(shares) != len(sizes) or not shares or min(shares) <= 0:
            raise ValueError(f"{len(sizes)} sets need as many positive shares, got {list(shares)}")
        if min(sizes) <= 0:
            raise ValueError(f"a set without samples cannot be drawn from; the sets have {list(sizes)} samples")
        self.sizes, self.seed = tuple(sizes), seed
        self.counts = _whole(shares)

    def place_at(self, position: int) -> tuple[int, int]:
        """(set, index in the set) at a position of the run, 0 or more."""
        block, rank = divmod(position, sum(self.counts))
        order = _block_order(self.counts, self.seed, block)
        number = order[rank]
        sample_number = block * self.counts[number] + order[:rank].count(number)
        return number, shuffled(sample_number, self.sizes[number], self.seed + 1 + number)


def shuffled(position: int, total: int, seed: int) -> int:
    """The index that a set of `total` samples shows at a position: each epoch is a permutation of its own."""
    epoch, place = divmod(position, total)
    return place if total >= UNSHUFFLED else int(_permutation(total, seed, epoch)[place])


@lru_cache(maxsize=16)
def _permutation(total: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(total)


@lru_cache(maxsize=16)
def _block_order(counts: tuple[int, ...], seed: int, block: int) -> tuple[int, ...]:
    numbers = np.repeat(np.arange(len(counts)), counts)
    return tuple(np.random.default_rng((seed, block, len(counts))).permutation(numbers).tolist())


def _whole(shares: Sequence[float]) -> tuple[int, ...]:
    """Number of a block's positions for each set: at least one, the largest remainders rounded up."""
    exact = np.asarray(shares, float) / sum(shares) * max(BLOCK, len(shares))
    counts = np.maximum(np.floor(exact), 1).astype(int)
    for number in np.argsort(counts - exact, kind="stable")[: max(0, round(exact.sum()) - counts.sum())]:
        counts[number] += 1
    return tuple(counts.tolist())
