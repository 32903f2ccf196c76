"""What a model's predictions would cost a person who corrects them to the truth, and which order of tasks knows it.

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
        confidence: mean score of what is shown; 0 for nothing.
    """

    features: list[dict[str, float]] = field(default_factory=list)
    edits: list[float] = field(default_factory=list)
    certainty: list[float] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)

    def add(
        self, instances: Sequence[Instance], edit: Callable[[Sequence[Instance]], float], shown_from: float
    ) -> None:
        """Take an image: what was found, and what correcting the shown part of it costs."""
        shown = [instance for instance in instances if instance.score >= shown_from and instance.mask_hw.any()]
        hidden = [instance for instance in instances if instance.score < shown_from]
        self.features.append(features_of(shown, hidden))
        self.edits.append(edit(shown))
        self.certainty.append(certainty(shown))
        self.confidence.append(float(np.mean([instance.score for instance in shown])) if shown else 0.0)

    def fit(self, fitted_on: str) -> EffortModel:
        """Weights for these images. Raises EffortError when they are too few."""
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
    measured = CorrectionCost()
    usable = (sample for _, sample in usable_samples(samples))
    while chosen := list(islice(usable, MOST_AT_A_TIME)):
        for sample, instances in zip(chosen, predictor([sample.image for sample in chosen]), strict=True):
            known = [instance for instance in instances if instance.label in class_names]

            def edit(shown: Sequence[Instance], sample: Sample = sample) -> float:
                return simulated_edit(shown, sample, class_names)

            measured.add(known, edit, shown_from)
            progress()
    return measured


def crossed_predictor(predictor: Predict, folds: Path) -> Predict:
    """A predictor that answers from a cross-validation about images that its model learned from."""
    known = candidate_instances(folds)

    def predict(images: Sequence[np.ndarray]) -> list[Sequence[Instance]]:
        return [
            known[sha256] if (sha256 := pixels_sha256(image)) in known else predictor([image])[0] for image in images
        ]

    return predict


def calibrated_order(
    checkpoint: Path, snapshot: Path, folds: Path | None, *, device: str, shown_from: float = SHOWN_FROM
) -> str:
    """Fit the order of tasks to the images that a checkpoint did not learn from, and keep it with the checkpoint."""
    from model.inference.predictor import Predictor

    samples, classes, name = snapshot_samples(snapshot, MOST_IMAGES, whole=folds is not None)
    if len(samples) < LEAST_IMAGES:
        return (
            f"tasks are ordered by certainty: {len(samples)} images that the version did not learn from say too little "
            f"about the edits it will take, {LEAST_IMAGES} are needed"
        )
    predictor: Predict = Predictor.from_checkpoint(checkpoint, device=device, score_threshold=shown_from / 2)
    if folds is not None:
        predictor = crossed_predictor(predictor, folds)
    try:
        fitted = measure_correction_cost(predictor, samples, classes, shown_from=shown_from).fit(name)
    except EffortError as error:
        return f"tasks are ordered by certainty: {error}"
    fitted.save(checkpoint)
    return fitted.verdict


def snapshot_samples(directory: Path, count: int, *, whole: bool) -> tuple[Any, tuple[str, ...], str]:
    """The hold-out of a snapshot, then with `whole` the training images, `count` at most; its classes and its name."""
    from torch.utils.data import ConcatDataset, Subset

    snapshot = open_snapshot(directory)
    parts: Any = [snapshot.open_set(part) for part in (("holdout", "train") if whole else ("holdout",))]
    parts = [part for part in parts if len(part)]
    everything: Any = ConcatDataset(parts) if parts else []
    chosen = Subset(everything, range(min(count, len(everything))))
    return chosen, snapshot.classes, f"snapshot {snapshot.digest[:12]}"


def simulated_edit(shown: Sequence[Instance], sample: Sample, class_names: Sequence[str]) -> float:
    """Cost of correcting instances to a sample's truth. What lies in a crowd region is nobody's work."""
    crowd_hw = sample.masks[sample.crowd].any(axis=0)
    truth = [
        DrawnObject(class_names[label], mask_hw)
        for mask_hw, label, crowd in zip(sample.masks, sample.classes, sample.crowd, strict=True)
        if not crowd and mask_hw.any()
    ]
    predicted = [
        DrawnObject(instance.label, instance.mask_hw, score=instance.score)
        for instance in shown
        if 2 * np.count_nonzero(instance.mask_hw & crowd_hw) <= np.count_nonzero(instance.mask_hw)
    ]
    return edit_cost(find_corrections(predicted, truth, outline_px))


@dataclass(frozen=True, slots=True)
class OrderFigures:
    """How good an order is.

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
    ordered = mean_of_group[np.sort(group)]
    covered = np.concatenate([[0.0], np.cumsum(ordered)])
    return covered / covered[-1] if covered[-1] > 0 else np.linspace(0, 1, len(covered))


def _figures(expected: np.ndarray, real: np.ndarray, draws: np.ndarray) -> OrderFigures:
    resampled = [rank_correlation(expected[draw], real[draw]) for draw in draws]
    low, high = np.percentile(resampled, [2.5, 97.5])
    fifth = np.interp(0.2 * len(real), np.arange(len(real) + 1), work_covered(-expected, real))
    return OrderFigures(rank_correlation(expected, real), float(low), float(high), float(fifth))
