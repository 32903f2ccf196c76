"""The cost of correcting a model's predictions to the truth, and the order of tasks that predicts it.

Shapes: K images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from backend.learning.snapshot import outline_px
from integration.regions.write import certainty
from model.inference.predictor import MOST_AT_A_TIME
from model.instance import Instance
from training.datasets import Sample, usable_samples
from training.gate.holdout import candidate_instances
from training.snapshots.annotation_cost import (
    LEAST_IMAGES,
    EffortError,
    EffortModel,
    features_of,
    fit_effort,
    rank_correlation,
)
from training.snapshots.corrections import DrawnObject, edit_cost, find_corrections
from training.snapshots.format import open_snapshot, pixels_sha256

SHOWN_FROM = 0.5
#: More images cost time and hardly change the weights of an order.
MOST_IMAGES = 100
#: RGB images -> the instances of each.
Predict = Callable[[Sequence[np.ndarray]], Sequence[Sequence[Instance]]]


@dataclass
class CorrectionCost:
    """Lists of equal length, an entry an image.

    Attributes:
        edits: actions of a person who corrects the prediction to the truth.
        certainty: today's task score.
        confidence: mean score of the instances that are shown; 0 without any.
    """

    features: list[dict[str, float]] = field(default_factory=list)
    edits: list[float] = field(default_factory=list)
    certainty: list[float] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)

    def add(
        self, instances: Sequence[Instance], edit: Callable[[Sequence[Instance]], float], shown_from: float
    ) -> None:
        """Add an image: its instances, and the cost of correcting those that are shown (score from `shown_from`)."""
        visible = [instance for instance in instances if instance.score >= shown_from and instance.mask_hw.any()]
        invisible = [instance for instance in instances if instance.score < shown_from]
        self.features.append(features_of(visible, invisible))
        self.edits.append(edit(visible))
        self.certainty.append(certainty(visible))
        self.confidence.append(float(np.mean([instance.score for instance in visible])) if visible else 0.0)

    def fit(self, fitted_on: str) -> EffortModel:
        """Fit the weights to these images. Raises EffortError when they are too few."""
        return fit_effort(self.features, self.edits, self.certainty, fitted_on=fitted_on)


def measure_correction_cost(
    predictor: Predict,
    samples: Sequence[Sample],
    class_names: Sequence[str],
    *,
    shown_from: float = SHOWN_FROM,
    progress: Callable[[], None] = lambda: None,
) -> CorrectionCost:
    """Predict every sample and let a simulated annotator correct it (`training.snapshots.corrections`)."""
    cost = CorrectionCost()
    samples_left = (sample for _, sample in usable_samples(samples))
    while batch := list(islice(samples_left, MOST_AT_A_TIME)):
        for sample, instances in zip(batch, predictor([sample.image for sample in batch]), strict=True):
            instances_of_classes = [instance for instance in instances if instance.label in class_names]

            def edit(visible: Sequence[Instance], sample: Sample = sample) -> float:
                return simulated_edit(visible, sample, class_names)

            cost.add(instances_of_classes, edit, shown_from)
            progress()
    return cost


def crossed_predictor(predictor: Predict, folds: Path) -> Predict:
    """A predictor that takes images its model learned from out of a cross-validation."""
    fold_instances = candidate_instances(folds)

    def predict(images: Sequence[np.ndarray]) -> list[Sequence[Instance]]:
        return [
            fold_instances[sha256] if (sha256 := pixels_sha256(image)) in fold_instances else predictor([image])[0]
            for image in images
        ]

    return predict


def calibrated_order(
    checkpoint: Path, snapshot: Path, folds: Path | None, *, device: str, shown_from: float = SHOWN_FROM
) -> str:
    """Fit the order of tasks to images that a checkpoint did not learn from; save it there; a sentence for people."""
    from model.inference.predictor import Predictor

    samples, classes, name = snapshot_samples(snapshot, MOST_IMAGES, with_training=folds is not None)
    if len(samples) < LEAST_IMAGES:
        return (
            f"tasks are ordered by certainty: {len(samples)} images that the version did not learn from say too little "
            f"about the edits it will take, {LEAST_IMAGES} are needed"
        )
    predictor: Predict = Predictor.from_checkpoint(checkpoint, device=device, score_threshold=shown_from / 2)
    if folds is not None:
        predictor = crossed_predictor(predictor, folds)
    try:
        model = measure_correction_cost(predictor, samples, classes, shown_from=shown_from).fit(name)
    except EffortError as error:
        return f"tasks are ordered by certainty: {error}"
    model.save(checkpoint)
    return model.verdict


def snapshot_samples(directory: Path, count: int, *, with_training: bool) -> tuple[Any, tuple[str, ...], str]:
    """At most `count` images of a snapshot's hold-out, then `with_training` of the rest; its classes; its name."""
    from torch.utils.data import ConcatDataset, Subset

    snapshot = open_snapshot(directory)
    parts: Any = [snapshot.open_set(part) for part in (("holdout", "train") if with_training else ("holdout",))]
    parts = [part for part in parts if len(part)]
    all_samples: Any = ConcatDataset(parts) if parts else []
    samples = Subset(all_samples, range(min(count, len(all_samples))))
    return samples, snapshot.classes, f"snapshot {snapshot.digest[:12]}"


def simulated_edit(instances: Sequence[Instance], sample: Sample, class_names: Sequence[str]) -> float:
    """Cost of correcting instances to a sample's truth; instances in a crowd region cost nothing."""
    crowd_hw = sample.masks[sample.crowd].any(axis=0)
    truth = [
        DrawnObject(class_names[label], mask_hw)
        for mask_hw, label, crowd in zip(sample.masks, sample.classes, sample.crowd, strict=True)
        if not crowd and mask_hw.any()
    ]
    predicted_objects = [
        DrawnObject(instance.label, instance.mask_hw, score=instance.score)
        for instance in instances
        if 2 * np.count_nonzero(instance.mask_hw & crowd_hw) <= np.count_nonzero(instance.mask_hw)
    ]
    return edit_cost(find_corrections(predicted_objects, truth, outline_px))


@dataclass(frozen=True, slots=True)
class OrderFigures:
    """The quality of an order of tasks.

    Attributes:
        rank_correlation: Spearman's, of the order with the real edits: 1 is perfect, 0 is random.
        low, high: its 95 % interval (bootstrap over images).
        first_fifth: share of all edits that lies in the first fifth of the images; 0.2 is random.
    """

    rank_correlation: float
    low: float
    high: float
    first_fifth: float


def compare_orders(
    scores: Mapping[str, Sequence[float]], edits: Sequence[float], *, resamples: int = 1000, seed: int = 0
) -> dict[str, OrderFigures]:
    """Compare scores (low first) with the edits that K images really took; all on the same resamples."""
    real = np.asarray(edits, dtype=np.float64)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(real), (resamples, len(real)))
    return {name: _figures(-np.asarray(values, dtype=np.float64), real, draws) for name, values in scores.items()}


def work_covered(scores: Sequence[float] | np.ndarray, edits: Sequence[float] | np.ndarray) -> np.ndarray:
    """Share of all edits in the first n images of an order (low scores first), n = 0..K: (K + 1,).

    Images of equal score share their edits evenly, as if they came in random order.
    """
    values, real = np.asarray(scores, dtype=np.float64), np.asarray(edits, dtype=np.float64)
    _, group = np.unique(values, return_inverse=True)
    mean_of_group = np.bincount(group, real) / np.bincount(group)
    ordered_edits = mean_of_group[np.sort(group)]
    cumulative = np.concatenate([[0.0], np.cumsum(ordered_edits)])
    return cumulative / cumulative[-1] if cumulative[-1] > 0 else np.linspace(0, 1, len(cumulative))


def _figures(expected: np.ndarray, real: np.ndarray, draws: np.ndarray) -> OrderFigures:
    correlations = [rank_correlation(expected[draw], real[draw]) for draw in draws]
    low, high = np.percentile(correlations, [2.5, 97.5])
    fifth = np.interp(0.2 * len(real), np.arange(len(real) + 1), work_covered(-expected, real))
    return OrderFigures(rank_correlation(expected, real), float(low), float(high), float(fifth))
