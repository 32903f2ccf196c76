"""What a model's predictions would cost a person who corrects them to the truth, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from backend.learning.snapshot.builder import outline_px
from backend.worker.predictor import Predictor
from integration.regions.settings import certainty
from model.instance import Instance
from model.parallel import MOST_AT_A_TIME
from training.datasets import Sample
from training.snapshots.annotation_cost import EffortModel, features_of, fit_effort
from training.snapshots.corrections import DEFAULT_RULES, CorrectionRules, DrawnObject, edit_cost, find_corrections

SHOWN_FROM = 0.5


@dataclass
class CorrectionCost:
    """Lists of equal length, an entry an image.

    Attributes:
        features: see `training.snapshots.annotation_cost.FEATURES`.
        edits: actions of a person who corrects the prediction to the truth.
        certainty: today's task score.
        confidence: mean score of what is shown; 0 for nothing.
    """

    features: list[dict[str, float]] = field(default_factory=list)
    edits: list[float] = field(default_factory=list)
    certainty: list[float] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)

    def add(self, found: Sequence[Instance], edit: Callable[[Sequence[Instance]], float], shown_from: float) -> None:
        """Take an image: what was found, and what correcting the shown part of it costs."""
        shown = [one for one in found if one.score >= shown_from and one.mask_hw.any()]
        hidden = [one for one in found if one.score < shown_from]
        self.features.append(features_of(shown, hidden))
        self.edits.append(edit(shown))
        self.certainty.append(certainty(shown))
        self.confidence.append(float(np.mean([one.score for one in shown])) if shown else 0.0)

    def fit(self, fitted_on: str) -> EffortModel:
        """Weights for these images. Raises EffortError when they are too few."""
        return fit_effort(self.features, self.edits, self.certainty, fitted_on=fitted_on)


def measure_correction_cost(
    predictor: Predictor,
    samples: Sequence[Sample],
    class_names: Sequence[str],
    *,
    shown_from: float = SHOWN_FROM,
    rules: CorrectionRules = DEFAULT_RULES,
    progress: Callable[[], None] = lambda: None,
) -> CorrectionCost:
    """Predict every sample and let a simulated annotator correct it (`training.snapshots.corrections`)."""
    measured = CorrectionCost()
    for start in range(0, len(samples), MOST_AT_A_TIME):
        chosen = [samples[number] for number in range(start, min(start + MOST_AT_A_TIME, len(samples)))]
        for sample, instances in zip(chosen, predictor([one.image for one in chosen]), strict=True):
            found = [one for one in instances if one.label in class_names]

            def edit(shown: Sequence[Instance], sample: Sample = sample) -> float:
                return simulated_edit(shown, sample, class_names, rules)

            measured.add(found, edit, shown_from)
            progress()
    return measured


def simulated_edit(
    shown: Sequence[Instance], sample: Sample, class_names: Sequence[str], rules: CorrectionRules = DEFAULT_RULES
) -> float:
    """Cost of correcting instances to a sample's truth. What lies in a crowd region is nobody's work."""
    crowd_hw = sample.masks[sample.crowd].any(axis=0)
    truth = [
        DrawnObject(class_names[label], mask_hw)
        for mask_hw, label, crowd in zip(sample.masks, sample.classes, sample.crowd, strict=True)
        if not crowd and mask_hw.any()
    ]
    predicted = [
        DrawnObject(one.label, one.mask_hw, score=one.score)
        for one in shown
        if 2 * np.count_nonzero(one.mask_hw & crowd_hw) <= np.count_nonzero(one.mask_hw)
    ]
    return edit_cost(find_corrections(predicted, truth, outline_px, rules))
