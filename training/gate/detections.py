"""What checkpoints find on pictures. Each looks at each picture once, however many hold-outs hold it.

Where a hold-out is too small, cross-validation: detections on images that the class rows were not learned from. The
training writes their file, see `training.fewshot.learn.out_of_fold`: for "candidate", and for an "incumbent" that
learned from some of the images, {content hash of the image: [[label, score, RLE, box], ...]}.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.instance import Instance
from training.datasets import Sample
from training.datasets.sample import MadeSamples
from training.snapshots.format import decode_rle, pixels_sha256


@dataclass(frozen=True, slots=True)
class Detection:
    """One detection: class name, score in 0..1, compressed RLE of its mask in the whole image."""

    label: str
    score: float
    segmentation: dict[str, Any]


# (checkpoint directory, pictures) -> what it finds on each of them.
Detect = Callable[[Path, Sequence[Sample]], list[list[Detection]]]


def detect_with(
    device: str = "cpu", progress: Callable[[int], object] = int, *, precision: Literal["fp32", "bf16"] = "fp32"
) -> Detect:
    """The detections that `transfiner evaluate` measures: the same network, settings and post-processing.

    Args:
        device: of the network; progress: called with how many pictures are done.
        precision: of the arithmetic; a network that has no bf16 raises ValueError when it is asked for.
    """

    def detect(directory: Path, samples: Sequence[Sample]) -> list[list[Detection]]:
        # Here, so that reading verdicts needs no torch.
        from model.precision import to_bf16
        from model.predictor import map_in_threads
        from training.datasets.loader import to_test_input
        from training.evaluation.coco_format import encode
        from training.evaluation.run import infer, load_for_evaluation

        network, cfg, names = load_for_evaluation(directory, device, ["MODEL.TRANSFINER.KEEP_COARSE", "False"])
        if precision == "bf16":
            to_bf16(network)
        done, turn = itertools.count(1), threading.Lock()

        def look(index: int) -> list[Detection]:
            seen = infer(network, to_test_input(samples[index], cfg))
            labels = [names[label] for label in seen.pred_classes.tolist()]
            masks = [encode(mask) for mask in seen.pred_masks.numpy().astype(bool)]
            with turn:
                progress(next(done))
            return [Detection(*fields) for fields in zip(labels, seen.scores.tolist(), masks, strict=True)]

        return map_in_threads(look, range(len(samples)), device)

    return detect


def picture_key(sample: Sample) -> str:
    """sha256 of a sample's size and pixels."""
    digest = hashlib.sha256(str(sample.image.shape).encode())
    digest.update(sample.image.tobytes())
    return digest.hexdigest()


class DetectionCache:
    """A `Detect` that remembers what each checkpoint found on each picture."""

    def __init__(self, detect: Detect) -> None:
        self._detect = detect
        self._seen: dict[tuple[Path, str], list[Detection]] = {}

    def __call__(self, directory: Path, samples: Sequence[Sample]) -> list[list[Detection]]:
        return self.on(directory, samples, [picture_key(samples[index]) for index in range(len(samples))])

    def on(self, directory: Path, samples: Sequence[Sample], keys: Sequence[str]) -> list[list[Detection]]:
        """What a checkpoint finds on each of some samples, whose `picture_key`s are given."""
        new = {key: index for index, key in enumerate(keys) if (directory, key) not in self._seen}
        if new:
            results = self._detect(directory, MadeSamples(list(new.values()), samples.__getitem__))
            self._seen.update({(directory, key): detections for key, detections in zip(new, results, strict=True)})
        return [self._seen[directory, key] for key in keys]


@dataclass(frozen=True, slots=True)
class Folds:
    """Detections out of fold.

    Attributes:
        count: of the folds.
        detections: for each checkpoint directory, by content hash.
    """

    count: int
    detections: dict[Path, dict[str, list[Detection]]]

    def detect(self, otherwise: Detect) -> Detect:
        """Answers from the folds, and asks `otherwise` about images that a checkpoint never learned from."""

        def detect(directory: Path, samples: Sequence[Sample]) -> list[list[Detection]]:
            known = self.detections.get(directory, {})
            hashes = [pixels_sha256(samples[index].image) for index in range(len(samples))] if known else []
            others = [index for index in range(len(samples)) if not known or hashes[index] not in known]
            looked = (
                dict(zip(others, otherwise(directory, MadeSamples(others, samples.__getitem__)), strict=True))
                if others
                else {}
            )
            return [looked[index] if index in looked else known[hashes[index]] for index in range(len(samples))]

        return detect


def read_folds(file: Path, candidate: Path, incumbent: Path | None) -> Folds:
    """Read the file that a training wrote.

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
    """By content hash, what rows that never saw an image find on it.

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
