"""Orders of work beside each other: which one finds the images that take the most edits first.

Shapes: K images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.snapshots.annotation_cost import rank_correlation
from training.visualization.charts import draw_coverage


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


def draw_orders(scores: Mapping[str, Sequence[float]], edits: Sequence[float]) -> Image.Image:
    """Draw the work covered by each order, the perfect one and a random one."""
    lines = {**scores, "perfect": [-edit for edit in edits]}
    return draw_coverage({name: work_covered(values, edits) for name, values in lines.items()})


def _figures(expected: np.ndarray, real: np.ndarray, draws: np.ndarray) -> OrderFigures:
    resampled = [rank_correlation(expected[draw], real[draw]) for draw in draws]
    low, high = np.percentile(resampled, [2.5, 97.5])
    fifth = np.interp(0.2 * len(real), np.arange(len(real) + 1), work_covered(-expected, real))
    return OrderFigures(rank_correlation(expected, real), float(low), float(high), float(fifth))
