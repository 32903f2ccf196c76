"""How well the order of tasks told the edits that they took: rank correlation, beside mean confidence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def rank_correlations(snapshot: Path) -> dict[str, Any]:
    """Spearman's rho over the images of a snapshot whose prediction was shown; 1: the lowest score took the most.

    Returns:
        {"images", "task_score", "mean_confidence"}; None where nothing can be said (fewer than three images, no
        variation).
    """
    from training.effort import rank_correlation

    entries = json.loads((snapshot / "corrections.json").read_text(encoding="utf-8"))["images"]
    shown = [one for one in entries if one["shown"] and one["prediction_score"] is not None]
    costs = [one["cost"] for one in shown]
    scores = {
        "task_score": [one["prediction_score"] for one in shown],
        "mean_confidence": [_mean_confidence(one) for one in shown],
    }
    found: dict[str, Any] = {"images": len(shown)}
    for name, values in scores.items():
        rho = rank_correlation([-value for value in values], costs) if len(shown) > 2 else math.nan
        found[name] = None if math.isnan(rho) else round(rho, 3)
    return found


def _mean_confidence(entry: dict[str, Any]) -> float:
    scores = [one["score"] for one in entry["objects"] if one["score"] is not None]
    return sum(scores) / len(scores) if scores else 0.0
