"""The plan of a finetuning: how long and how strongly it learns, by how many images there are, and from what.

It learns from the new snapshot with what people corrected in it, earlier ones replayed, and base sets. Each has its
share of the samples; all have their classes put in one order. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from training.datasets import Problems, Sample, open_set
from training.datasets.sample import MadeSamples, SampleSet, WeightedSample
from training.snapshots.format import Snapshot, decode_rle, open_snapshot


@dataclass(frozen=True, slots=True)
class Schedule:
    """A preset of how long and how strongly a finetuning learns.

    Attributes:
        epochs: over the snapshot's images (replayed ones come on top).
        fewest, most: bounds of the iterations.
        base_lr: of AdamW. backbone_lr_factor: the less there is to learn from, the less its features may move.
        ema_decay: of the averaged weights; a short run cannot afford a long memory.
    """

    epochs: float
    fewest: int
    most: int
    base_lr: float
    backbone_lr_factor: float
    ema_decay: float


SCHEDULES: dict[str, Schedule] = {
    "tens": Schedule(30, 60, 600, 2e-4, 0.1, 0.98),
    "hundreds": Schedule(15, 400, 3000, 3e-4, 0.25, 0.99),
    "thousands": Schedule(6, 2000, 40000, 4e-4, 0.5, 0.998),
}


def preset_for(images: int) -> str:
    """The preset of that many training images: "tens" below 100, "hundreds" below 1000, else "thousands"."""
    return "tens" if images < 100 else "hundreds" if images < 1000 else "thousands"


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """Wishes of a finetuning; None leaves a choice to the preset.

    Attributes:
        preset: "auto" (by the number of images), "tens", "hundreds" or "thousands".
        iterations: steps. epochs: over the snapshot's images, for steps between the preset's fewest and most.
        batch_size: images a step, over all processes. base_lr: of AdamW.
        max_minutes: the schedule is fitted to this wall-clock time if it ends earlier (0: no limit).
        replay_share: of the samples, from earlier snapshots, where there are any.
        base_share: of the samples, from base sets, where there are any.
        band_weight: factor of the places where people moved an outline.
        renamed: old class name -> new class name.
        accumulate, precision: as TRAINING.ACCUMULATE and TRAINING.PRECISION.
        threads: of the arithmetic (0: the machine's choice). data_workers: processes that prepare images.
        save_period, log_period: iterations (0: a twentieth of the run but at least 25, a fiftieth).
        device: "cpu", "cuda", or "auto".
        seed: of the order of samples and all augmentation.
        overrides: configuration keys and values, last word.
    """

    preset: str = "auto"
    iterations: int | None = None
    epochs: float | None = None
    batch_size: int = 4
    base_lr: float | None = None
    max_minutes: float = 0.0
    replay_share: float = 0.25
    base_share: float = 0.25
    band_weight: float = 3.0
    renamed: Mapping[str, str] = field(default_factory=dict)
    accumulate: int = 1
    precision: str = "fp32"
    threads: int = 0
    data_workers: int = 0
    save_period: int = 0
    log_period: int = 0
    device: str = "auto"
    seed: int = 1
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for values that cannot work."""
        if self.preset not in ("auto", *SCHEDULES):
            raise ValueError(f"the preset is {self.preset!r}; choose auto, {', '.join(SCHEDULES)}")
        if self.replay_share < 0 or self.base_share < 0 or self.replay_share + self.base_share >= 1:
            raise ValueError(
                f"replay_share {self.replay_share} and base_share {self.base_share} must be 0 or more and leave "
                "something for the new snapshot: together below 1"
            )
        if self.iterations is not None and self.epochs is not None:
            raise ValueError(f"give iterations ({self.iterations}) or epochs ({self.epochs:g}), not both")
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"epochs is {self.epochs:g}; it must be above 0")
        for name, least in (("batch_size", 1), ("iterations", 1), ("accumulate", 1), ("band_weight", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be {least} or more")

    def schedule(self, images: int) -> Schedule:
        """The preset's schedule for that many training images."""
        return SCHEDULES[preset_for(images) if self.preset == "auto" else self.preset]

    def steps(self, images: int, share: float) -> int:
        """Iterations for that many training images of which each batch holds a share."""
        if self.iterations is not None:
            return self.iterations
        schedule = self.schedule(images)
        epochs = schedule.epochs if self.epochs is None else self.epochs
        steps = epochs * images / (self.batch_size * share)
        return int(min(max(steps, schedule.fewest), schedule.most))


@dataclass(frozen=True, slots=True)
class FinetuneData:
    """The sets that a finetuning learns from, all with the same classes.

    Attributes:
        sets: the new snapshot first. shares: of the samples, by set; together 1. names: for the record.
        images: in the training part of the new snapshot.
        digests: of the snapshots, the new one first.
    """

    sets: tuple[SampleSet, ...]
    shares: tuple[float, ...]
    names: tuple[str, ...]
    images: int
    digests: tuple[str, ...]


def finetune_data(
    snapshot: Path, replay: Sequence[Path], base_sets: Sequence[str], classes: Sequence[str], settings: FinetuneSettings
) -> FinetuneData:
    """Open all that a finetuning reads: the snapshot, the replayed ones and the base sets.

    An image is replayed with its newest annotations alone: what the new snapshot holds is left out of earlier ones.

    Args:
        replay: earlier snapshots, oldest first. base_sets: names as `training.datasets.open_set` takes them.

    Raises:
        NothingToLearn: the snapshot has no images to train on.
        SnapshotError: a directory is no snapshot, or was changed.
        ValueError: an unknown base set.
    """
    new_samples = training_part(snapshot, settings.band_weight)
    seen_hashes, earlier = _hashes(snapshot), []
    for directory in reversed(replay):
        samples = SnapshotSamples(directory, band_weight=settings.band_weight, without=seen_hashes)
        seen_hashes |= _hashes(directory)
        if len(samples):
            earlier.append(samples)
    base = [open_set(name) for name in base_sets]
    shares = _shares(earlier, base, settings)
    every_set: list[SampleSet] = [new_samples, *earlier, *base]
    return FinetuneData(
        tuple(relabel_samples(samples, classes, settings.renamed) for samples in every_set),
        shares,
        (*(f"snapshot:{samples.snapshot.digest[:12]}" for samples in (new_samples, *earlier)), *base_sets),
        len(new_samples),
        tuple(samples.snapshot.digest for samples in (new_samples, *earlier)),
    )


def _shares(earlier: Sequence[Any], base: Sequence[Any], settings: FinetuneSettings) -> tuple[float, ...]:
    """Shares of the new snapshot, each replayed one and each base set; sets of a kind share by their size."""
    replayed = _split(settings.replay_share, earlier)
    based = _split(settings.base_share, base)
    positive_shares = [share for share in (*replayed, *based) if share > 0]
    if len(positive_shares) < len(replayed) + len(based):
        raise ValueError(
            f"replay_share is {settings.replay_share} and base_share {settings.base_share}, but there are "
            f"{len(earlier)} snapshots to replay and {len(base)} base sets; give a positive share or no sets"
        )
    return (1 - sum(positive_shares), *positive_shares)


def _split(share: float, sets: Sequence[Sequence[Any]]) -> list[float]:
    total = sum(len(samples) for samples in sets)
    return [share * len(samples) / total for samples in sets]


def _hashes(directory: Path) -> set[str]:
    snapshot = open_snapshot(directory)
    return {image["sha256"] for part in ("train", "holdout") for image in snapshot.coco(part)["images"]}


class NothingToLearn(ValueError):  # noqa: N818 - says what is wrong
    """The snapshot has no images to train on."""


def training_part(snapshot: Path, band_weight: float = 1.0) -> SnapshotSamples:
    """The images of a snapshot to learn from.

    Raises:
        NothingToLearn: there are none.
        SnapshotError: the directory is no snapshot, or was changed.
    """
    samples = SnapshotSamples(snapshot, band_weight=band_weight)
    if len(samples) == 0:
        raise NothingToLearn(
            f"{snapshot} has no images to train on ({samples.snapshot.manifest.get('counts')}); annotate more: about "
            "one image in five is held out"
        )
    return samples


class SnapshotSamples(Sequence[WeightedSample]):
    """The training part of a snapshot, weighted as its corrections say.

    An object that only has a box trains its box and class: its mask, which is that box, weighs nothing. Disputed
    objects are crowd, so neither trained on nor background. A picture that cannot be read, or has another size than its
    record, is named and raises ImageLeftOutError when it is asked for.

    Args:
        directory: of the snapshot; it is checked against its digest.
        band_weight: factor of the places where people moved an outline.
        part: "train" or "holdout".
        without: content hashes of images to leave out.

    Raises:
        SnapshotError: the directory is no snapshot, or was changed.
    """

    def __init__(
        self, directory: Path, *, band_weight: float = 1.0, part: str = "train", without: Collection[str] = ()
    ) -> None:
        self.snapshot: Snapshot = open_snapshot(directory)
        self.band_weight = band_weight
        self.problems = Problems()
        self.class_names: tuple[str, ...] = self.snapshot.classes
        records = self.snapshot.coco(part)
        self._images: list[dict[str, Any]] = [image for image in records["images"] if image["sha256"] not in without]
        self._class_of = {
            category["id"]: self.class_names.index(category["name"]) for category in records["categories"]
        }
        self._objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self._images}
        for annotation in records["annotations"]:
            if annotation["image_id"] in self._objects:
                self._objects[annotation["image_id"]].append(annotation)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> WeightedSample:  # type: ignore[override]
        image = self._images[index]
        path = self.snapshot.images / image["file_name"]
        picture = self.problems.picture(path, "skip")
        objects, size = self._objects[image["id"]], picture.shape[:2]
        stated = (image["height"], image["width"])
        if size != stated:
            detail = f"the picture is {size[1]} x {size[0]}, its record says {stated[1]} x {stated[0]}; left out"
            raise self.problems.leave_out(path, f"image {image['id']}", "other size", detail)
        masks = [decode_rle(annotation["segmentation"]) for annotation in objects]
        bands = [
            decode_rle(band) if (band := annotation.get("moved_band")) else np.zeros(size, bool)
            for annotation in objects
        ]
        weights = [
            0.0 if annotation.get("box_only") else float(annotation.get("weight", 1.0)) for annotation in objects
        ]
        return WeightedSample(
            picture,
            np.array(masks, bool).reshape(-1, *size),
            np.array([self._class_of[annotation["category_id"]] for annotation in objects], np.int64),
            np.array([bool(annotation.get("iscrowd", 0)) for annotation in objects], bool),
            int(image["id"]),
            np.array(weights, np.float32),
            np.array(bands, bool).reshape(-1, *size),
            self.band_weight,
        )

    def object_places(self, sample: Sample) -> list[str]:
        """Task and region of each object of a sample."""
        (task,) = {image["task_id"] for image in self._images if image["id"] == sample.image_id}
        return [
            f"task {task}, region {', '.join(annotation['region_ids'])}"
            for annotation in self._objects[sample.image_id]
        ]


def relabel_samples(samples: SampleSet, classes: Sequence[str], renamed: Mapping[str, str]) -> SampleSet:
    """The set seen through other classes: matched by name, renamed first; objects of other classes count as crowd.

    What a set never labelled is background in it: choose base sets that do not show the objects of new classes.

    Args:
        classes: names to give out, in their order. renamed: name in the set -> name in `classes`.
    """
    if tuple(samples.class_names) == tuple(classes) and not renamed:
        return samples
    names = [renamed.get(name, name) for name in samples.class_names]
    index_of = np.array([classes.index(name) if name in classes else -1 for name in names], np.int64)
    return MadeSamples(range(len(samples)), partial(_relabelled, samples, index_of), classes)


def _relabelled(samples: SampleSet, index_of: np.ndarray, index: int) -> Sample:
    sample = samples[index]
    classes = index_of[sample.classes]
    return replace(sample, classes=np.maximum(classes, 0), crowd=sample.crowd | (classes < 0))
