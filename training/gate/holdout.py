"""Hold-outs of snapshots, and what a model reached on one.

Shapes: N images, K categories of the hold-out, B resamples, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from training.datasets import CocoSet, Sample
from training.datasets.sample import MadeSamples, narrowed
from training.evaluation.coco_format import TruthBuilder
from training.gate.detections import Detection, picture_key
from training.metrics.bootstrap import RankedMatches, average_precision, ranked_matches

HOLDOUT_FILE, TRAIN_FILE = "holdout.json", "train.json"
IMAGES = "images"
AP_KINDS: tuple[Literal["mask"], Literal["boundary"]] = ("mask", "boundary")
IOU50, IOU75 = 0, 5  # places among the IoU thresholds


@dataclass(frozen=True, slots=True)
class Holdout:
    """A hold-out, its pictures still on disk.

    Attributes:
        name: of its snapshot's folder.
        samples: N pictures with truth.
        keys: N, content hashes of the pictures.
        classes: K names.
        dataset: COCO ground truth; categories are numbered from 1 in the order of the classes.
        held_out: of the N, how many no model learned from; the others are judged by cross-validation.
        folds: of the cross-validation; 0 where there is none.
    """

    name: str
    samples: Sequence[Sample]
    keys: tuple[str, ...]
    classes: tuple[str, ...]
    dataset: dict[str, Any]
    held_out: int
    folds: int = 0

    @property
    def annotated_images(self) -> int:
        """How many images have something to be found."""
        return len({annotation["image_id"] for annotation in self.dataset["annotations"] if not annotation["iscrowd"]})

    def images_with(self, category: int) -> int:
        """How many images have something of that category (its index) to be found."""
        wanted = [annotation for annotation in self.dataset["annotations"] if annotation["category_id"] == category + 1]
        return len({annotation["image_id"] for annotation in wanted if not annotation["iscrowd"]})

    @property
    def description(self) -> str:
        """What decides, for people: 12 images held out, or cross-validation."""
        held = f"{self.held_out} images held out"
        if not self.folds:
            return held
        return f"cross-validation of {len(self.keys) - self.held_out} images in {self.folds} folds, and {held}"

    def coco_results(self, detections: Sequence[Sequence[Detection]]) -> list[dict[str, Any]]:
        """COCO results of what a model finds on each picture; a class that is not asked for is nobody's mistake."""
        numbers = {name: index + 1 for index, name in enumerate(self.classes)}
        return [
            {
                "image_id": image["id"],
                "category_id": numbers[detection.label],
                "score": detection.score,
                "segmentation": detection.segmentation,
            }
            for image, seen in zip(self.dataset["images"], detections, strict=True)
            for detection in seen
            if detection.label in numbers
        ]

    def as_dict(self) -> dict[str, Any]:
        """Its size, for reports."""
        return {
            "name": self.name,
            "description": self.description,
            "images": len(self.keys),
            "held_out": self.held_out,
            "folds": self.folds,
            "annotated_images": self.annotated_images,
            "objects": len(self.dataset["annotations"]),
            "to_be_found": sum(not annotation["iscrowd"] for annotation in self.dataset["annotations"]),
            "classes": list(self.classes),
        }


def open_holdout(snapshot: Path, asked: Sequence[str] | None = None, *, folds: int = 0) -> Holdout:
    """The hold-out of a snapshot directory, of all its classes or only of those asked for.

    Where people drew only a box, what is found inside it neither counts for a model nor against it.

    Args:
        folds: of a cross-validation, whose images are the training part; 0 for the hold-out alone.

    Raises:
        FileNotFoundError: it has no hold-out, or one of its pictures is missing.
    """
    if not (snapshot / HOLDOUT_FILE).is_file():
        raise FileNotFoundError(f"{snapshot} is no snapshot: {HOLDOUT_FILE} is missing")
    files = [snapshot / name for name in ((HOLDOUT_FILE, TRAIN_FILE) if folds else (HOLDOUT_FILE,))]
    parts = [CocoSet(file, snapshot / IMAGES) for file in files]
    places = [(part, index) for part in parts for index in range(len(part))]
    samples = MadeSamples(
        range(len(places)),
        lambda n: replace(places[n][0][places[n][1]], image_id=n + 1),  # numbered through
    )
    names = parts[0].class_names
    classes = tuple(name for name in names if asked is None or name in asked)
    truth, keys = TruthBuilder(classes), []
    for index in range(len(samples)):
        sample = samples[index]
        truth.add(narrowed(sample, names, classes))
        keys.append(picture_key(sample))
    return Holdout(snapshot.name, samples, tuple(keys), classes, truth.build(), len(parts[0]), folds)


@dataclass(frozen=True, slots=True)
class HoldoutResult:
    """Matches of one model on a hold-out.

    Attributes:
        holdout: that one.
        known: classes of the hold-out that the model knows; the others count as never found.
        matches: for "mask" and "boundary", K entries.
    """

    holdout: Holdout
    known: frozenset[str]
    matches: dict[Literal["mask", "boundary"], list[RankedMatches]]

    def average_precision(self, kind: Literal["mask", "boundary"], weights: np.ndarray) -> np.ndarray:
        """B x K x T under B x N image weights; NaN for classes without truth."""
        columns = [average_precision(match, weights) for match in self.matches[kind]]
        return np.stack(columns, axis=1) if columns else np.zeros((len(weights), 0, 10))

    def figures(self) -> dict[str, dict[str, float]]:
        """{"mask": {"AP", "AP50", "AP75", "AP/<class>"}, "boundary": {...}}, NaN where nothing was to be found."""
        everything = np.ones((1, len(self.holdout.keys)), np.int64)
        return {kind: self._named(self.average_precision(kind, everything)[0]) for kind in AP_KINDS}

    def _named(self, values: np.ndarray) -> dict[str, float]:
        present = values[~np.isnan(values).any(1)]  # classes with truth x T
        named = {"AP": present, "AP50": present[:, IOU50], "AP75": present[:, IOU75]}
        figures = {name: float(part.mean()) if part.size else float("nan") for name, part in named.items()}
        per_class = zip(self.holdout.classes, values, strict=True)
        return figures | {f"AP/{name}": float(row.mean()) for name, row in per_class}


def measure(
    holdout: Holdout, detections: Sequence[Sequence[Detection]], classes: Sequence[str], ratio: float
) -> HoldoutResult:
    """Match what a model of these classes found on each picture of a hold-out."""
    results = holdout.coco_results(detections)
    matches = {
        kind: ranked_matches(holdout.dataset, results, boundary=kind == "boundary", ratio=ratio) for kind in AP_KINDS
    }
    return HoldoutResult(holdout, frozenset(classes) & frozenset(holdout.classes), matches)
