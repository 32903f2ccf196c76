"""Samples of a snapshot with what people corrected in them, and any set with its classes put in another order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from training.datasets import Problems, Sample
from training.datasets.loader import SampleSet, WeightedSample
from training.snapshots.format import Snapshot, decode_rle, open_snapshot


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
        self._class_of = {entry["id"]: self.class_names.index(entry["name"]) for entry in records["categories"]}
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
        masks = [decode_rle(drawn["segmentation"]) for drawn in objects]
        bands = [decode_rle(band) if (band := drawn.get("moved_band")) else np.zeros(size, bool) for drawn in objects]
        weights = [0.0 if drawn.get("box_only") else float(drawn.get("weight", 1.0)) for drawn in objects]
        return WeightedSample(
            picture,
            np.array(masks, bool).reshape(-1, *size),
            np.array([self._class_of[drawn["category_id"]] for drawn in objects], np.int64),
            np.array([bool(drawn.get("iscrowd", 0)) for drawn in objects], bool),
            int(image["id"]),
            np.array(weights, np.float32),
            np.array(bands, bool).reshape(-1, *size),
            self.band_weight,
        )

    def object_places(self, sample: Sample) -> list[str]:
        """Task and region of each object of a sample."""
        (task,) = {image["task_id"] for image in self._images if image["id"] == sample.image_id}
        return [f"task {task}, region {', '.join(drawn['region_ids'])}" for drawn in self._objects[sample.image_id]]


class Relabelled(Sequence[Sample]):
    """A set seen through other classes: matched by name, renamed first; objects of other classes count as crowd.

    What a set never labelled is background in it: choose base sets that do not show the objects of new classes.

    Args:
        samples: the set. classes: names to give out, in their order. renamed: name in the set -> name in `classes`.
    """

    def __init__(self, samples: SampleSet, classes: Sequence[str], renamed: Mapping[str, str] | None = None) -> None:
        self.samples, self.class_names = samples, tuple(classes)
        names = [(renamed or {}).get(name, name) for name in samples.class_names]
        self._index_of = np.array(
            [self.class_names.index(name) if name in self.class_names else -1 for name in names], np.int64
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        sample = self.samples[index]
        classes = self._index_of[sample.classes]
        return replace(sample, classes=np.maximum(classes, 0), crowd=sample.crowd | (classes < 0))


def relabel_samples(samples: SampleSet, classes: Sequence[str], renamed: Mapping[str, str]) -> SampleSet:
    """The set with these classes; itself where it has them already."""
    if tuple(samples.class_names) == tuple(classes) and not renamed:
        return samples
    return Relabelled(samples, classes, renamed)
