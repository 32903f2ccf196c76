"""What a finetuning learns from: the new snapshot, earlier ones replayed, base sets, each with its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.datasets import open_set
from training.datasets.loader import SampleSet
from training.finetune.settings import FinetuneSettings
from training.snapshots.format import open_snapshot
from training.snapshots.samples import SnapshotSamples, relabel_samples


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


@dataclass(frozen=True, slots=True)
class FinetuneData:
    """Sets with equal classes.

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
    """Open everything.

    An image is replayed with its newest annotations alone: what the new snapshot holds is left out of earlier ones.

    Args:
        replay: earlier snapshots, oldest first. base_sets: names as `training.datasets.open_set` takes them.

    Raises:
        NothingToLearn: the snapshot has no images to train on.
        SnapshotError: a directory is no snapshot, or was changed.
        ValueError: an unknown base set.
    """
    new = training_part(snapshot, settings.band_weight)
    seen, earlier = _hashes(snapshot), []
    for directory in reversed(replay):
        samples = SnapshotSamples(directory, band_weight=settings.band_weight, without=seen)
        seen |= _hashes(directory)
        if len(samples):
            earlier.append(samples)
    base = [open_set(name) for name in base_sets]
    shares = _shares(earlier, base, settings)
    given: list[SampleSet] = [new, *earlier, *base]
    return FinetuneData(
        tuple(relabel_samples(samples, classes, settings.renamed) for samples in given),
        shares,
        (*(f"snapshot:{samples.snapshot.digest[:12]}" for samples in (new, *earlier)), *base_sets),
        len(new),
        tuple(samples.snapshot.digest for samples in (new, *earlier)),
    )


def _shares(earlier: Sequence[Any], base: Sequence[Any], settings: FinetuneSettings) -> tuple[float, ...]:
    """Replay and base shares only where there is something to draw; within a kind by size."""
    replayed = _split(settings.replay_share, earlier)
    based = _split(settings.base_share, base)
    kept = [share for share in (*replayed, *based) if share > 0]
    if len(kept) < len(replayed) + len(based):
        raise ValueError(
            f"replay_share is {settings.replay_share} and base_share {settings.base_share}, but there are "
            f"{len(earlier)} snapshots to replay and {len(base)} base sets; give a positive share or no sets"
        )
    return (1 - sum(kept), *kept)


def _split(share: float, sets: Sequence[Sequence[Any]]) -> list[float]:
    total = sum(len(samples) for samples in sets)
    return [share * len(samples) / total for samples in sets]


def _hashes(directory: Path) -> set[str]:
    snapshot = open_snapshot(directory)
    return {image["sha256"] for part in ("train", "holdout") for image in snapshot.coco(part)["images"]}
