"""Mask AP as COCO defines it, by pycocotools. Values are fractions in 0..1, NaN where nothing was to be found."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from training.evaluation.coco_format import quiet

_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def mask_ap(truth: COCO, found: list[dict[str, Any]]) -> dict[str, float]:
    """AP averaged over IoU .50:.95, AP50, AP75, by area (s, m, l), and ``AP/<class>`` for every class."""
    return evaluate(COCOeval, truth, found)


def evaluate(evaluation: type[COCOeval], truth: COCO, found: list[dict[str, Any]]) -> dict[str, float]:
    """Run a COCO evaluation class over in-memory results and name its numbers."""
    categories = truth.loadCats(sorted(truth.getCatIds()))
    if not found:  # pycocotools cannot load an empty list; nothing found is simply AP 0
        return dict.fromkeys((*_NAMES, *(f"AP/{one['name']}" for one in categories)), 0.0)
    with quiet():
        run = evaluation(truth, truth.loadRes(copy.deepcopy(found)), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    values = {name: _nan_if_absent(value) for name, value in zip(_NAMES, run.stats[:6], strict=True)}
    precision = run.eval["precision"][:, :, :, 0, -1]  # IoU x recall x class, all areas, most detections
    for column, category in enumerate(categories):
        valid = precision[:, :, column]
        valid = valid[valid > -1]
        values[f"AP/{category['name']}"] = float(valid.mean()) if valid.size else float("nan")
    return values


def _nan_if_absent(value: Any) -> float:
    return float("nan") if np.isclose(value, -1) else float(value)
