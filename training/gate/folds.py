"""Cross-validation where a hold-out is too small: detections on images that the class rows were not learned from.

The training writes the file, see `training.fewshot.learn.out_of_fold`: for "candidate", and for an "incumbent" that
learned from some of the images, {content hash of the image: [[label, score, RLE, box], ...]}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.instance import Instance
from training.datasets import Sample
from training.gate.detections import Chosen, Detect, Detection
from training.snapshots.format import decode_rle, pixels_sha256


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
            looked = dict(zip(others, otherwise(directory, Chosen(samples, others)), strict=True)) if others else {}
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
