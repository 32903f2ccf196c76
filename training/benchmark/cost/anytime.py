"""Accuracy for time: a set measured under several node budgets, each image under all of them in turn.

Taking turns image by image makes the times of one run comparable on a machine that other work slows now and then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances
from torch import nn

from training.datasets import AnySet, usable_samples
from training.datasets.loader import to_network_input
from training.evaluation.coco_format import TruthBuilder, coco_results
from training.evaluation.run import infer
from training.metrics.coco import boundary_ap, mask_ap

COARSE, UNLIMITED = -1, 0


@dataclass(frozen=True, slots=True)
class Point:
    """One budget's outcome.

    Attributes:
        budget: nodes an image; -1 no refinement at all, 0 no limit.
        nodes: refined an image, mean.
        seconds: processor time an image, median; on a GPU wall time after synchronising.
        mask_ap: fraction. boundary_ap: fraction.
    """

    budget: int
    nodes: float
    seconds: float
    mask_ap: float
    boundary_ap: float


def anytime_curve(
    network: nn.Module,
    cfg: CfgNode,
    samples: AnySet,
    budgets: Sequence[int],
    *,
    ratio: float = 0.02,
    progress: Callable[[int], object] = int,
) -> list[Point]:
    """Measure every budget of ``budgets``, beside no refinement and no limit, on all samples.

    Raises:
        ValueError: a budget below one.
    """
    if any(budget < 1 for budget in budgets):
        raise ValueError(f"budgets are {list(budgets)}, expected numbers of nodes from 1 up")
    order = [COARSE, *sorted(set(budgets)), UNLIMITED]
    resize = [ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
    truth = TruthBuilder(samples.class_names)
    results: dict[int, list[dict[str, Any]]] = {budget: [] for budget in order}
    seconds: dict[int, list[float]] = {budget: [] for budget in order}
    nodes: dict[int, list[float]] = {budget: [] for budget in order}
    for index, sample in usable_samples(samples):
        truth.add(sample)
        record = to_network_input(sample, resize, cfg.INPUT.FORMAT)
        for budget in np.roll(order, index).tolist():  # nobody is always first, when caches are cold
            instances, took_s = _timed(network, record, budget)
            seconds[budget].append(took_s)
            nodes[budget].append(_refined_nodes(instances, budget))
            results[budget] += coco_results(
                sample.image_id,
                instances.pred_masks.numpy().astype(bool),
                instances.scores.numpy(),
                instances.pred_classes.numpy(),
            )
        progress(index + 1)
    dataset = truth.build()
    return [
        Point(
            budget,
            float(np.mean(nodes[budget])),
            float(np.median(seconds[budget])),
            mask_ap(dataset, results[budget])["AP"],
            boundary_ap(dataset, results[budget], ratio=ratio)["AP"],
        )
        for budget in order
    ]


def _timed(network: nn.Module, record: dict[str, Any], budget: int) -> tuple[Instances, float]:
    head: Any = network.roi_heads.mask_head  # type: ignore[union-attr]
    kept = head.settings
    on_gpu = next(network.parameters()).is_cuda
    clock = time.perf_counter if on_gpu else time.process_time
    if budget == COARSE:
        head.settings = replace(kept, test_min_box_px=math.inf)
    else:
        head.settings = replace(kept, test_node_budget=budget)
    try:
        started_s = clock()
        instances = infer(network, record)
        if on_gpu:
            torch.cuda.synchronize()
        return instances, clock() - started_s
    finally:
        head.settings = kept


def _refined_nodes(instances: Instances, budget: int) -> float:
    total = float(instances.incoherent_nodes.sum())
    return min(total, budget) if budget > 0 else total


def knee(points: Sequence[Point]) -> Point:
    """The point furthest above the straight line from the fastest to the slowest, both axes scaled to [0, 1].

    A budget beyond it buys less boundary AP a second than the whole range does on average.
    """
    seconds = np.array([point.seconds for point in points])
    gains = np.array([point.boundary_ap for point in points])
    first, last = int(seconds.argmin()), int(seconds.argmax())
    across, up = seconds[last] - seconds[first], gains[last] - gains[first]
    if across <= 0 or up <= 0:
        return points[first]
    above = (gains - gains[first]) / up - (seconds - seconds[first]) / across
    return points[int(above.argmax())]


def anytime_as_dict(points: Sequence[Point]) -> dict[str, Any]:
    """For JSON."""
    return {"points": [asdict(point) for point in points], "knee": knee(points).budget}


def anytime_text(points: Sequence[Point]) -> str:
    """A table; times as shares of the unlimited refinement's, since they are comparable within one run only."""
    full_s = points[-1].seconds
    best = knee(points)
    lines = [f"{'budget':>9} {'nodes':>8} {'time':>6} {'mask AP':>8} {'boundary AP':>12}"]
    for point in points:
        lines.append(
            f"{budget_name(point.budget):>9} {point.nodes:8.0f} {point.seconds / full_s:6.2f} "
            f"{100 * point.mask_ap:8.1f} {100 * point.boundary_ap:12.1f}{'  <- knee' if point is best else ''}"
        )
    if best.budget > 0:
        lines.append(
            f'serve at the knee: TRANSFINER_NODE_BUDGET={best.budget}, or "served": {{"node_budget": '
            f"{best.budget}}} in the model's metadata.json"
        )
    lines.append(f"time: of the {full_s:.2f} s an image that refining everything takes here")
    return "\n".join(lines)


def budget_name(budget: int) -> str:
    """A budget as people read it."""
    return {COARSE: "coarse", UNLIMITED: "no limit"}.get(budget, str(budget))
