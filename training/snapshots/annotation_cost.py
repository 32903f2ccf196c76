"""The order of tasks: estimate from a prediction how much a person will have to edit in an image.

    expected edit = intercept + sum over features of weight x feature        (weights >= 0, actions of `corrections`)
    score         = scale / (scale + expected edit)                          (0..1; Label Studio shows the lowest first)

Weights are fitted to the measured edits of a snapshot's images, by least squares without negative weights: an image
that is worse in any feature never gets a better score. They are stored in a model version's metadata; a version without
them, or whose fit does not certainly order images outside the fit, uses `integration.regions.write.certainty`. The
model must not have learned from the images: on those it makes fewer and different mistakes.

Shapes: H, W image size; K images, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from model.checkpoints.metadata import METADATA_FILE, read_metadata, update_metadata
from model.instance import Instance, box_of
from training.metrics.boundary import outline_length

#: Entry of a checkpoint's metadata.
EFFORT_KEY = "effort"
#: Least number of images to fit the weights to.
LEAST_IMAGES = 20
_RIDGE = 0.05
#: Pixel corners of an outline for one vertex of its polygon, about: puts features on the scale of actions.
_CORNERS_A_VERTEX = 10.0

#: Features, each the larger the more there is to do. All are sums over the objects of an image.
FEATURES = {
    "objects": "objects shown",
    "doubt": "1 - score of those",
    "outline": "length of their outlines, in vertices",
    "doubtful_outline": "the same times 1 - score",
    "uncertain_outline": "the same times the uncertainty of the refined outline",
    "box": "1 - IoU of the detector's box and the box around the mask: the two disagree",
    "class": "overlap of their box with the box of an object of another class, shown or not",
    "hidden": "scores of objects that were found but are not shown: they may be missing",
    "nodes": "incoherent quadtree nodes of the refined outlines, in hundreds; 0 when the model does not tell",
    "nothing": "1 when nothing is shown",
}


class EffortError(ValueError):
    """Effort cannot be fitted or read; the message says what, the value and the fix."""


@dataclass(frozen=True, slots=True)
class EffortModel:
    """Weights of the features.

    Attributes:
        weights: by name of the feature, in actions, >= 0.
        intercept: actions of an image whose features are all 0.
        scale: the expected edit that is scored 0.5: the median of the images it was fitted to.
        images: number of those images.
        rank_correlation: Spearman's, of expected and real edits of images that were left out of the fit.
        baseline: the same for the score by certainty.
        fitted_on: source of the images.
    """

    weights: Mapping[str, float]
    intercept: float
    scale: float
    images: int
    rank_correlation: float
    baseline: float
    fitted_on: str = ""

    @property
    def is_useful(self) -> bool:
        """Whether the model orders images better than the score by certainty, and certainly better than chance."""
        return self.rank_correlation > max(self.baseline, chance_correlation(self.images))

    @property
    def verdict(self) -> str:
        """Say whether tasks are ordered by the model, and why."""
        figures = (
            f"rank correlation with the edits of {self.images} images: {self.rank_correlation:+.2f} when left out of "
            f"the fit, the score by certainty {self.baseline:+.2f}, chance up to {chance_correlation(self.images):+.2f}"
        )
        order = "by the edits they are expected to take" if self.is_useful else "by certainty: that is no worse"
        return f"tasks are ordered {order} ({figures})"

    def expected_edit(self, features: Mapping[str, float]) -> float:
        """Expected actions of the hand for an image, from its features."""
        return self.intercept + sum(self.weights.get(name, 0.0) * value for name, value in features.items())

    def score(self, shown: Sequence[Instance], hidden: Sequence[Instance] = ()) -> float:
        """Task score in (0, 1], lower the more there is to edit; six decimals, as Label Studio stores."""
        return round(self.scale / (self.scale + self.expected_edit(features_of(shown, hidden))), 6)

    def save(self, directory: Path) -> None:
        """Write the weights into the metadata of a checkpoint directory."""
        update_metadata(directory, {EFFORT_KEY: asdict(self)})


def load_effort(directory: Path) -> EffortModel | None:
    """The effort model of a checkpoint directory; None when it has none.

    Raises:
        EffortError: it is damaged.
    """
    if not (directory / METADATA_FILE).is_file():
        return None
    try:
        if (facts := read_metadata(directory).get(EFFORT_KEY)) is None:
            return None
        model = EffortModel(**facts)
        numbers = [*model.weights.values(), model.intercept, model.scale]
        if not all(math.isfinite(number) and number >= 0 for number in numbers) or model.scale <= 0:
            raise ValueError(f"weights, intercept and scale are {numbers}, expected finite numbers >= 0")
    except (ValueError, TypeError, AttributeError) as error:
        raise EffortError(
            f"the effort in {directory / METADATA_FILE} is damaged: {error}; take it out, or publish the version anew"
        ) from error
    return model


def features_of(shown: Sequence[Instance], hidden: Sequence[Instance] = ()) -> dict[str, float]:
    """The features of an image.

    Args:
        hidden: instances that were found but left out because of their score.
    """
    rows = [_object_features(instance, [*shown, *hidden]) for instance in shown]
    totals = {name: float(sum(row.get(name, 0.0) for row in rows)) for name in FEATURES}
    totals["hidden"] = float(sum(_unit(instance.score) for instance in hidden))
    totals["nothing"] = float(not shown)
    return totals


def fit_effort(
    features: Sequence[Mapping[str, float]],
    edits: Sequence[float],
    baseline_scores: Sequence[float],
    *,
    fitted_on: str = "",
) -> EffortModel:
    """Fit the weights to the edits of images.

    Args:
        features: of K images, from `features_of`.
        edits: their cost, from `corrections.edit_cost`.
        baseline_scores: scores by certainty of the same images; low ones come first.

    Raises:
        EffortError: fewer than `LEAST_IMAGES` images, or all have the same edit.
    """
    if len(edits) < LEAST_IMAGES or len(set(edits)) < 2:
        raise EffortError(
            f"{len(edits)} images with {len(set(edits))} different edits, expected {LEAST_IMAGES} images and some that "
            "took more than others; annotate more images first"
        )
    matrix = np.array([[row.get(name, 0.0) for name in FEATURES] for row in features])
    target = np.asarray(edits, dtype=np.float64)
    weights, intercept = _solve(matrix, target)
    left_out = _cross_fitted(matrix, target)
    return EffortModel(
        {name: float(weight) for name, weight in zip(FEATURES, weights, strict=True)},
        float(intercept),
        max(float(np.median(target)), 1.0),
        len(target),
        rank_correlation(left_out, target),
        rank_correlation(-np.asarray(baseline_scores), target),
        fitted_on,
    )


def cross_fitted_edits(features: Sequence[Mapping[str, float]], edits: Sequence[float]) -> np.ndarray:
    """Expected edit of each of K images, from weights that were fitted without it."""
    matrix = np.array([[row.get(name, 0.0) for name in FEATURES] for row in features])
    return _cross_fitted(matrix, np.asarray(edits, dtype=np.float64))


def rank_correlation(expected: Sequence[float] | np.ndarray, real: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; 0 when either does not vary."""
    from scipy.stats import spearmanr

    if any(np.ptp(values) == 0 for values in (expected, real)):
        return 0.0
    return float(spearmanr(expected, real).statistic)


def chance_correlation(images: int) -> float:
    """Upper bound of a random order's rank correlation, with 95 % confidence, for so many images."""
    return 1.645 / math.sqrt(max(images - 1, 1))


def _solve(matrix: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and intercept, all >= 0: least squares over features in units of their spread, slightly shrunk."""
    spread = np.maximum(np.abs(matrix).max(axis=0), 1e-9)
    scaled = np.hstack([matrix / spread, np.ones((len(matrix), 1))])
    shrink = np.sqrt(_RIDGE * len(matrix)) * np.eye(scaled.shape[1])[:-1]
    solution, _ = nnls(np.vstack([scaled, shrink]), np.concatenate([target, np.zeros(len(shrink))]))
    return solution[:-1] / spread, float(solution[-1])


def _cross_fitted(matrix: np.ndarray, target: np.ndarray, folds: int = 5) -> np.ndarray:
    expected = np.zeros(len(target))
    fold_of = np.random.default_rng(0).permutation(len(target)) % folds
    for fold in range(folds):
        is_held_out = fold_of == fold
        weights, intercept = _solve(matrix[~is_held_out], target[~is_held_out])
        expected[is_held_out] = matrix[is_held_out] @ weights + intercept
    return expected


def _object_features(instance: Instance, everything: Sequence[Instance]) -> dict[str, float]:
    doubt = 1 - _unit(instance.score)
    mask_box, corners = _outline(instance)
    vertices = corners / _CORNERS_A_VERTEX
    nodes = instance.incoherent_nodes or 0
    return {
        "objects": 1.0,
        "doubt": doubt,
        "outline": vertices,
        "doubtful_outline": vertices * doubt,
        "uncertain_outline": vertices * _unit(instance.uncertainty),
        "box": 1 - _box_iou(instance.box_xyxy, mask_box),
        "class": max(
            (_box_iou(instance.box_xyxy, rival.box_xyxy) for rival in everything if rival.label != instance.label),
            default=0.0,
        ),
        "nodes": nodes / 100,
    }


def _outline(instance: Instance) -> tuple[Sequence[float], int]:
    """Box around the mask (all 0 when it is empty) and its outline's length; searches the detector's box first."""
    height, width = instance.mask_hw.shape
    left, top, right, bottom = (int(edge) if math.isfinite(edge) else 0 for edge in instance.box_xyxy)
    rows, columns = slice(max(top - 2, 0), max(bottom + 3, 0)), slice(max(left - 2, 0), max(right + 3, 0))
    window = instance.mask_hw[rows, columns]
    if not window.any():
        rows, columns, window = slice(0, height), slice(0, width), instance.mask_hw
    if not window.any():
        return (0.0, 0.0, 0.0, 0.0), 0
    x, y, right, bottom = box_of(window)
    box = (x + columns.start, y + rows.start, right + columns.start, bottom + rows.start)
    return box, outline_length(window)


def _box_iou(box: Sequence[float], other_box: Sequence[float]) -> float:
    """IoU of two boxes in x, y, x, y; 0 for boxes that are not numbers."""
    width = min(box[2], other_box[2]) - max(box[0], other_box[0])
    height = min(box[3], other_box[3]) - max(box[1], other_box[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = (
        (box[2] - box[0]) * (box[3] - box[1])
        + (other_box[2] - other_box[0]) * (other_box[3] - other_box[1])
        - intersection
    )
    return intersection / union if intersection > 0 and union > 0 else 0.0


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 1.0
