"""Label Studio's JSON back to COCO results, through the reader that reads people's annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from integration.label_studio.label_config import LabelConfig
from integration.regions.read import AnnotationError, regions_to_objects
from training.evaluation.coco_format import coco_results


class LabelError(ValueError):
    """The labels of a configuration cannot be distinguished as classes."""


def classes_of_labels(config: LabelConfig, classes: Sequence[str]) -> dict[str, int]:
    """Label -> number of the class that it stands for.

    Raises:
        LabelError: the configuration is unusable, no label is a class, or one label stands for several classes.
    """
    if config.reason is not None:
        raise LabelError(config.reason)
    match = config.match(classes)
    if match.message:
        raise LabelError(match.message)
    numbers: dict[str, int] = {}
    for name, targets in match.by_class.items():
        for label in {target.label.value for target in targets}:
            if label in numbers:
                raise LabelError(
                    f"label {label!r} stands for the classes {classes[numbers[label]]!r} and {name!r}, so an object "
                    "with it cannot be scored; use a configuration with a label for each class"
                )
            numbers[label] = classes.index(name)
    return numbers


@dataclass
class ServedResults:
    """What came back for a set.

    Attributes:
        labels: label -> class number.
        results: COCO results.
        regions: how many were read. skipped: regions that are no object, by reason.
        failed: task ids by reason (with its hint).
        answers: image id, size and regions of each prediction, in the order they came.
        versions: model versions that answered, with how many tasks each.
    """

    labels: Mapping[str, int]
    results: list[dict[str, Any]] = field(default_factory=list)
    regions: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[str]] = field(default_factory=dict)
    versions: Counter[str] = field(default_factory=Counter)
    answers: list[tuple[int, tuple[int, int], list[Any]]] = field(default_factory=list)

    def add(self, image_id: int, size_hw: tuple[int, int], prediction: Mapping[str, Any]) -> None:
        """Take in the prediction of one task, for an image of this size."""
        self.versions[str(prediction.get("model_version"))] += 1
        regions = prediction.get("result") or []
        self.answers.append((image_id, size_hw, regions))
        self.regions += len(regions)
        height, width = size_hw
        try:
            decoded = regions_to_objects(regions, width=width, height=height)
        except AnnotationError as error:
            self.skipped[str(error)] += len(regions)
            return
        self.skipped.update(reason for _, reason in decoded.skipped)
        kept = [object for object in decoded.objects if object.label in self.labels and object.score is not None]
        self.skipped.update(
            f"label {object.label!r} is no class of the set" if object.label not in self.labels else "it has no score"
            for object in decoded.objects
            if object not in kept
        )
        masks = np.array([kept_object.mask_hw for kept_object in kept], bool).reshape(-1, height, width)
        scores = np.array([kept_object.score for kept_object in kept], float)
        numbers = np.array([self.labels[kept_object.label] for kept_object in kept], np.int64)
        self.results += coco_results(image_id, masks, scores, numbers)

    def fail(self, task: str, reason: str) -> None:
        """Note a task that failed; its image counts as one without detections."""
        self.failed.setdefault(reason, []).append(task)
