"""Hold-outs of snapshots, the detections of checkpoints on them, and their matches.

Each checkpoint runs once on each picture, however many hold-outs hold it. Where a hold-out is too small, the training
images join it by cross-validation: detections of class rows that were not learned from the image. The training writes
them to a file, see `training.fewshot.learn.out_of_fold`: for "candidate", and for an "incumbent" that learned from some
of the images, {content hash of the image: [[label, score, RLE, box], ...]}.

Shapes: N images, K categories of the hold-out, B resamples, T IoU thresholds.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from model.instance import Instance
from training.datasets import CocoSet, Sample
from training.datasets.sample import MadeSamples, narrowed
from training.evaluation.coco_format import TruthBuilder
from training.metrics.coco import RankedMatches, average_precision, ranked_matches
from training.snapshots.format import FILES, decode_rle, pixels_sha256


@dataclass(frozen=True, slots=True)
class Detection:
    """One detection: class name, score in 0..1, compressed RLE of its mask in the whole image."""

    label: str
    score: float
    segmentation: dict[str, Any]


# (checkpoint directory, pictures) -> its detections on each picture.
Detect = Callable[[Path, Sequence[Sample]], list[list[Detection]]]


def detect_with(
    device: str = "cpu", progress: Callable[[int], object] = int, *, precision: Literal["fp32", "bf16"] = "fp32"
) -> Detect:
    """Make a `Detect` with the network, settings and post-processing of `transfiner evaluate`.

    Args:
        device: of the network; progress: called with the number of pictures done.
        precision: of the arithmetic; the `Detect` raises ValueError for bf16 where the network has none.
    """

    def detect(directory: Path, samples: Sequence[Sample]) -> list[list[Detection]]:
        # Here, so that reading verdicts needs no torch.
        from model.inference.precision import to_bf16
        from model.inference.predictor import map_in_threads
        from training.datasets.loader import to_test_input
        from training.evaluation.coco_format import encode
        from training.evaluation.run import infer, load_for_evaluation

        network, cfg, names = load_for_evaluation(directory, device, ["MODEL.TRANSFINER.KEEP_COARSE", "False"])
        if precision == "bf16":
            to_bf16(network)
        read_counter, lock = itertools.count(1), threading.Lock()

        def look(index: int) -> list[Detection]:
            instances = infer(network, to_test_input(samples[index], cfg))
            labels = [names[label] for label in instances.pred_classes.tolist()]
            masks = [encode(mask) for mask in instances.pred_masks.numpy().astype(bool)]
            with lock:
                progress(next(read_counter))
            return [Detection(*fields) for fields in zip(labels, instances.scores.tolist(), masks, strict=True)]

        return map_in_threads(look, range(len(samples)), device)

    return detect


class DetectionCache:
    """A `Detect` that runs each checkpoint once on each picture."""

    def __init__(self, detect: Detect) -> None:
        self._detect = detect
        self._detections: dict[tuple[Path, str], list[Detection]] = {}

    def __call__(self, directory: Path, samples: Sequence[Sample]) -> list[list[Detection]]:
        return self.on(directory, samples, [pixels_sha256(samples[index].image) for index in range(len(samples))])

    def on(self, directory: Path, samples: Sequence[Sample], keys: Sequence[str]) -> list[list[Detection]]:
        """Detections of a checkpoint on each sample; `keys` are the samples' content hashes."""
        index_of_missing = {key: index for index, key in enumerate(keys) if (directory, key) not in self._detections}
        if index_of_missing:
            results = self._detect(directory, MadeSamples(list(index_of_missing.values()), samples.__getitem__))
            self._detections.update(
                {(directory, key): detections for key, detections in zip(index_of_missing, results, strict=True)}
            )
        return [self._detections[directory, key] for key in keys]


@dataclass(frozen=True, slots=True)
class Folds:
    """Out-of-fold detections of a cross-validation.

    Attributes:
        count: of the folds.
        detections: for each checkpoint directory, by content hash.
    """

    count: int
    detections: dict[Path, dict[str, list[Detection]]]

    def detect(self, otherwise: Detect) -> Detect:
        """Make a `Detect` that reads the folds, and calls `otherwise` for images not learned from."""

        def detect(directory: Path, samples: Sequence[Sample]) -> list[list[Detection]]:
            by_hash = self.detections.get(directory, {})
            hashes = [pixels_sha256(samples[index].image) for index in range(len(samples))] if by_hash else []
            indices = [index for index in range(len(samples)) if not by_hash or hashes[index] not in by_hash]
            fresh = (
                dict(zip(indices, otherwise(directory, MadeSamples(indices, samples.__getitem__)), strict=True))
                if indices
                else {}
            )
            return [fresh[index] if index in fresh else by_hash[hashes[index]] for index in range(len(samples))]

        return detect


def read_folds(file: Path, candidate: Path, incumbent: Path | None) -> Folds:
    """Read the out-of-fold detections that a training wrote into a file.

    Raises:
        FileNotFoundError: there is none.
    """
    facts = json.loads(file.read_text(encoding="utf-8"))
    directories = {"candidate": candidate, "incumbent": incumbent}
    detections = {
        directory: {sha256: [Detection(*entry[:3]) for entry in entries] for sha256, entries in facts[role].items()}
        for role, directory in directories.items()
        if directory is not None and role in facts
    }
    return Folds(int(facts["folds"]), detections)


def candidate_instances(file: Path) -> dict[str, list[Instance]]:
    """Read the candidate's out-of-fold detections of each image, by content hash.

    Raises:
        FileNotFoundError: there is no such file.
    """
    facts = json.loads(file.read_text(encoding="utf-8"))
    return {
        sha256: [
            Instance(box_xyxy=tuple(box), label=label, score=score, mask_hw=decode_rle(rle))
            for label, score, rle, box in entries
        ]
        for sha256, entries in facts["candidate"].items()
    }


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
        held_out: number of the N that no model learned from; the others are judged by cross-validation.
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
        """Number of images with an object that is no crowd."""
        return len({annotation["image_id"] for annotation in self.dataset["annotations"] if not annotation["iscrowd"]})

    def images_with(self, category: int) -> int:
        """Number of images with an object of that category (its index) that is no crowd."""
        annotations = [
            annotation for annotation in self.dataset["annotations"] if annotation["category_id"] == category + 1
        ]
        return len({annotation["image_id"] for annotation in annotations if not annotation["iscrowd"]})

    @property
    def description(self) -> str:
        """Say on which images the gate decides: "12 images held out", or a cross-validation."""
        holdout_text = f"{self.held_out} images held out"
        if not self.folds:
            return holdout_text
        return f"cross-validation of {len(self.keys) - self.held_out} images in {self.folds} folds, and {holdout_text}"

    def coco_results(self, detections: Sequence[Sequence[Detection]]) -> list[dict[str, Any]]:
        """COCO results of a model's detections on each picture, without those of other classes."""
        numbers = {name: index + 1 for index, name in enumerate(self.classes)}
        return [
            {
                "image_id": image["id"],
                "category_id": numbers[detection.label],
                "score": detection.score,
                "segmentation": detection.segmentation,
            }
            for image, image_detections in zip(self.dataset["images"], detections, strict=True)
            for detection in image_detections
            if detection.label in numbers
        ]

    def as_dict(self) -> dict[str, Any]:
        """Numbers of images, objects and classes, for reports."""
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


def open_holdout(snapshot: Path, only_classes: Sequence[str] | None = None, *, folds: int = 0) -> Holdout:
    """Open the hold-out of a snapshot directory, with all its classes or with `only_classes`.

    Where people drew only a box, detections inside it are ignored.

    Args:
        folds: of a cross-validation, whose images are the training part; 0 for the hold-out alone.

    Raises:
        FileNotFoundError: it has no hold-out, or one of its pictures is missing.
    """
    if not (snapshot / FILES["holdout"]).is_file():
        raise FileNotFoundError(f"{snapshot} is no snapshot: {FILES['holdout']} is missing")
    parts = [CocoSet(snapshot / FILES[part], snapshot / "images") for part in ("holdout", "train")[: 1 + bool(folds)]]
    places = [(part, index) for part in parts for index in range(len(part))]
    samples = MadeSamples(
        range(len(places)),
        lambda n: replace(places[n][0][places[n][1]], image_id=n + 1),  # numbered through
    )
    names = parts[0].class_names
    classes = tuple(name for name in names if only_classes is None or name in only_classes)
    truth, keys = TruthBuilder(classes), []
    for index in range(len(samples)):
        sample = samples[index]
        truth.add(narrowed(sample, names, classes))
        keys.append(pixels_sha256(sample.image))
    return Holdout(snapshot.name, samples, tuple(keys), classes, truth.build(), len(parts[0]), folds)


@dataclass(frozen=True, slots=True)
class HoldoutResult:
    """Matches of one model on a hold-out.

    Attributes:
        holdout: the hold-out.
        known_classes: classes of the hold-out that the model knows; the others count as never found.
        matches: for "mask" and "boundary", K entries.
    """

    holdout: Holdout
    known_classes: frozenset[str]
    matches: dict[Literal["mask", "boundary"], list[RankedMatches]]

    def average_precision(self, kind: Literal["mask", "boundary"], weights: np.ndarray) -> np.ndarray:
        """B x K x T under B x N image weights; NaN for classes without truth."""
        columns = [average_precision(match, weights) for match in self.matches[kind]]
        return np.stack(columns, axis=1) if columns else np.zeros((len(weights), 0, 10))

    def figures(self) -> dict[str, dict[str, float]]:
        """{"mask": {"AP", "AP50", "AP75", "AP/<class>"}, "boundary": {...}}, NaN where nothing was to be found."""
        everything = np.ones((1, len(self.holdout.keys)), np.int64)
        return {kind: self._figures_of(self.average_precision(kind, everything)[0]) for kind in AP_KINDS}

    def _figures_of(self, values: np.ndarray) -> dict[str, float]:
        present = values[~np.isnan(values).any(1)]  # classes with truth x T
        columns = {"AP": present, "AP50": present[:, IOU50], "AP75": present[:, IOU75]}
        figures = {name: float(column.mean()) if column.size else float("nan") for name, column in columns.items()}
        per_class = zip(self.holdout.classes, values, strict=True)
        return figures | {f"AP/{name}": float(row.mean()) for name, row in per_class}


def measure(
    holdout: Holdout, detections: Sequence[Sequence[Detection]], classes: Sequence[str], ratio: float
) -> HoldoutResult:
    """Match a model's detections on each picture of a hold-out; `classes` are the model's."""
    results = holdout.coco_results(detections)
    matches = {
        kind: ranked_matches(holdout.dataset, results, boundary=kind == "boundary", ratio=ratio) for kind in AP_KINDS
    }
    return HoldoutResult(holdout, frozenset(classes) & frozenset(holdout.classes), matches)
