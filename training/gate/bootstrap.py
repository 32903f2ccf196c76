"""The paired bootstrap: how far apart two models are on a hold-out, and how certain that is.

Images are drawn with replacement; both models are measured on the same draw, so what an image is easy or hard for both
cancels. The interval is the percentile one, expanded for few images (Hesterberg 2015, "What Teachers Should Know
about the Bootstrap", section 5.2): plain percentiles of a dozen images are too narrow.
Shapes: N images, K categories, B resamples, T IoU thresholds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, t

from training.gate.holdout import AP_KINDS, HoldoutResult
from training.gate.rules import GateRules
from training.metrics.bootstrap import bootstrap_draws, image_weights

ALL, SHARED = "AP", "AP of shared classes"


@dataclass(frozen=True, slots=True)
class Change:
    """Of an AP, from the other model to the candidate; a fraction.

    Attributes:
        change: on the hold-out itself.
        low, high: with the confidence asked for, mask AP and boundary AP both change by more than their `low`; with the
            same they both change by less than their `high`.
    """

    change: float
    low: float
    high: float


# "mask" and "boundary" -> "AP", SHARED, "AP/<class>" -> Change; without what neither was asked for.
Changes = dict[str, dict[str, Change]]


def bootstrap_changes(candidate: HoldoutResult, other: HoldoutResult, rules: GateRules) -> Changes:
    """Changes from the other model to the candidate, both measured on the same hold-out."""
    images = len(candidate.holdout.keys)
    weights = image_weights(images, rules.resamples, rules.seed)  # the hold-out itself first
    tail = tail_share(rules.confidence, candidate.holdout.annotated_images)
    shared = [name in candidate.known & other.known for name in candidate.holdout.classes]
    return {
        kind: _changes(
            candidate.average_precision(kind, weights).mean(2),
            other.average_precision(kind, weights).mean(2),
            candidate.holdout.classes,
            np.array(shared, bool),
            tail,
        )
        for kind in AP_KINDS
    }


def reached_between(result: HoldoutResult, rules: GateRules) -> dict[str, tuple[float, float]]:
    """For mask AP and boundary AP, the range that they lie in with the confidence asked for, as fractions."""
    images = len(result.holdout.keys)
    weights = bootstrap_draws(images, rules.resamples, rules.seed)
    tail = tail_share(rules.confidence, result.holdout.annotated_images)
    ranges: dict[str, tuple[float, float]] = {}
    for kind in AP_KINDS:
        values = _mean(result.average_precision(kind, weights).mean(2))
        low, high = np.nanquantile(values, [tail, 1 - tail])
        ranges[kind] = (float(low), float(high))
    return ranges


def tail_share(confidence: float, images: int) -> float:
    """Share of the resamples beyond one end of an interval.

    Two figures have two chances to look better, so each gets half of the doubt; and a resample of n images varies less
    than n new images would, by what Student's t has over the normal distribution and by sqrt(n / (n - 1)).
    """
    doubt = (1 - confidence) / len(AP_KINDS)
    if images < 2:
        return 0.0
    return float(norm.cdf(np.sqrt(images / (images - 1)) * t.ppf(doubt, images - 1)))


def _changes(
    ours: np.ndarray, theirs: np.ndarray, classes: Sequence[str], shared: np.ndarray, tail: float
) -> dict[str, Change]:
    """From (1 + B) x K average precisions of both."""
    columns = {ALL: (_mean(ours), _mean(theirs))}
    if shared.any() and not shared.all():
        columns[SHARED] = (_mean(ours[:, shared]), _mean(theirs[:, shared]))
    columns |= {f"AP/{name}": (ours[:, place], theirs[:, place]) for place, name in enumerate(classes)}
    changes = {name: _change(ours - other, tail) for name, (ours, other) in columns.items()}
    return {name: change for name, change in changes.items() if change is not None}


def _change(differences: np.ndarray, tail: float) -> Change | None:
    """None where the hold-out has nothing of it; resamples that drew nothing of it say nothing."""
    first, resampled = differences[0], differences[1:][~np.isnan(differences[1:])]
    if np.isnan(first) or not len(resampled):
        return None
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Change(float(first), float(low), float(high))


def _mean(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a resample may hold nothing at all: NaN, dropped later
        means: np.ndarray = np.nanmean(values, axis=1) if values.shape[1] else np.full(len(values), np.nan)
    return means


def changes_as_dict(changes: Changes) -> dict[str, Any]:
    """Plain types, for JSON."""
    return {kind: {name: asdict(change) for name, change in part.items()} for kind, part in changes.items()}
