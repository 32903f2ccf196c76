"""Evaluate prompts: IoU of masks from boxes, beside an ellipse and GrabCut; clicks until a mask is good.

NoC@85 is the number of clicks until IoU 0.85, at most 20, each in the middle of the largest error (RITM's rule).

Shape shorthand: H x W an image's size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch.nn import functional as F

from model.inference.prompt_predictor import PromptedImage, PromptPredictor
from model.mask_head.quadtree import propagate
from model.prompts.answers import Prompt, as_instance, first_view, maps_of
from model.prompts.views import View
from training.metrics.boundary import boundary_mask
from training.prompts.clicks import next_click
from training.prompts.data import MaskedObject, ObjectSet, jittered_box

MOST_CLICKS = 20
#: What is compared: the quadtree's share of a look, the second look's, and both together.
GAINS = (("refined", "coarse"), ("answer", "refined"), ("answer", "coarse"))
#: COCO's sizes by area in pixels.
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}


@dataclass(slots=True)
class BoxFigures:
    """IoU and boundary IoU of each object, by method; areas in pixels; seconds of each of the network's prompts."""

    iou: dict[str, list[float]] = field(default_factory=dict)
    boundary: dict[str, list[float]] = field(default_factory=dict)
    areas: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, method: str, truth: np.ndarray, mask: np.ndarray) -> None:
        self.iou.setdefault(method, []).append(overlap(truth, mask))
        self.boundary.setdefault(method, []).append(overlap(boundary_mask(truth), boundary_mask(mask)))


def overlap(truth: np.ndarray, mask: np.ndarray) -> float:
    """Intersection over union of two bool masks; 1 when both are empty."""
    union = np.count_nonzero(truth | mask)
    return float(np.count_nonzero(truth & mask) / union) if union else 1.0


def ellipse_in_box(box_xyxy: Sequence[float], shape_hw: tuple[int, int]) -> np.ndarray:
    """The largest ellipse with upright axes in a box, bool H x W."""
    x0, y0, x1, y1 = box_xyxy
    y, x = np.ogrid[: shape_hw[0], : shape_hw[1]]
    across, along = (x + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2), (y + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
    return np.asarray(across**2 + along**2 <= 1)


def grabcut(image_rgb: np.ndarray, box_xyxy: Sequence[float]) -> np.ndarray:
    """Run five rounds of GrabCut from a box, bool H x W; needs OpenCV, which only the tests' environment has."""
    import cv2

    x0, y0, x1, y1 = (round(value) for value in box_xyxy)
    mask = np.zeros(image_rgb.shape[:2], np.uint8)
    try:
        cv2.grabCut(
            image_rgb[:, :, ::-1].copy(),
            mask,
            (x0, y0, max(x1 - x0, 1), max(y1 - y0, 1)),
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            5,
            cv2.GC_INIT_WITH_RECT,
        )
    except cv2.error:  # a box over the whole image leaves no background to learn from
        mask[y0:y1, x0:x1] = cv2.GC_PR_FGD
    return (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)


def measure_boxes(
    predictor: PromptPredictor,
    objects: ObjectSet,
    *,
    with_grabcut: bool = False,
    progress: Callable[[], object] = lambda: None,
) -> BoxFigures:
    """Measure every object from its true box and from a jittered one; also the ellipse and GrabCut.

    "answer" is what an annotator gets; "refined" and "coarse" are of the first look at the view alone; "true at nodes"
    is that coarse mask with the truth at the refined places: the best that refinement can reach.
    """
    figures, rng = BoxFigures(), np.random.default_rng(0)
    for item in objects.objects:
        image = objects.images[item.image]
        truth, prompted_image = item.mask(), predictor.image(image)
        jittered = _inside(jittered_box(item.box_xyxy, 0.1, rng), image.shape[:2])
        prompt = Prompt(box_xyxy=item.box_xyxy)
        view = first_view(prompt, image.shape[:2])
        start_s = time.perf_counter()
        answer = prompted_image.prompt(prompt).mask_hw
        figures.seconds.append(time.perf_counter() - start_s)
        figures.areas.append(float(truth.sum()))
        figures.add("answer", truth, answer)
        refined, coarse, _ = predictor.look(image, [view], [prompt])
        best_values = best_refinement(predictor, image, view, prompt, truth)
        for method, values in (("refined", refined[0]), ("coarse", coarse[0]), ("true at nodes", best_values)):
            figures.add(method, truth, as_instance(view, values, 1.0, prompt, image.shape[:2]).mask_hw)
        figures.add("jittered", truth, prompted_image.prompt(Prompt(box_xyxy=jittered)).mask_hw)
        figures.add("ellipse", truth, ellipse_in_box(item.box_xyxy, truth.shape))
        if with_grabcut:
            figures.add("grabcut", truth, grabcut(image, item.box_xyxy))
        progress()
    return figures


@torch.inference_mode()
def best_refinement(
    predictor: PromptPredictor, image_rgb: np.ndarray, view: View, prompt: Prompt, truth: np.ndarray
) -> np.ndarray:
    """Probabilities (s, s) of a view with the truth at every quadtree node, averaged with the mirrored view's."""
    network, head = predictor.network, predictor.network.mask_head
    pixels = torch.from_numpy(np.array(view.pixels(image_rgb))).permute(2, 0, 1)[None].float()
    maps, truth_views = maps_of(view, prompt)[None], torch.from_numpy(view.pixels(truth, 0) / 255)[None]
    pixels, maps, truth_views = (torch.cat([grid, grid.flip(-1)]) for grid in (pixels, maps, truth_views.float()))
    output = network.coarse(network.features(pixels.to(predictor.device), maps.to(predictor.device)))
    nodes = head.find_nodes(output)
    grids = [F.adaptive_avg_pool2d(truth_views.to(predictor.device), side) for side in head.sizes]
    values = [level.of(grid) for level, grid in zip(nodes, grids, strict=True)]
    coarse = output.logits.float().sigmoid()
    plain, mirrored = propagate(coarse, nodes, values, head.sizes, head.settings.propagation)
    return np.asarray(((plain + mirrored.flip(1)) / 2).cpu().numpy())


def _inside(box: Sequence[float], shape_hw: tuple[int, int]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(shape_hw[1])), min(y1, float(shape_hw[0]))


def clicks_needed(
    prompted: PromptedImage, item: MaskedObject, *, targets: Sequence[float]
) -> tuple[list[int], list[float]]:
    """Count clicks until each target IoU is reached (at most 20); also the seconds of each answer."""
    truth = item.mask()
    guess, points, seconds = np.zeros_like(truth), [], list[float]()
    clicks_of_target: dict[float, int] = {}
    for count in range(1, MOST_CLICKS + 1):
        click = next_click(truth, guess)
        if click is None:
            break
        points.append(click)
        start_s = time.perf_counter()
        guess = prompted.prompt(Prompt(points=tuple(points))).mask_hw
        seconds.append(time.perf_counter() - start_s)
        iou = overlap(truth, guess)
        for target in targets:
            if iou >= target:
                clicks_of_target.setdefault(target, count)
        if len(clicks_of_target) == len(targets):
            break
    return [clicks_of_target.get(target, MOST_CLICKS) for target in targets], seconds


def measure_clicks(
    predictor: PromptPredictor, objects: ObjectSet, *, progress: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Measure NoC@85, NoC@90 and the share of objects that never reach them."""
    counts, seconds = [], list[float]()
    for item in objects.objects:
        clicks, answer_s = clicks_needed(predictor.image(objects.images[item.image]), item, targets=(0.85, 0.90))
        counts.append(clicks)
        seconds += answer_s
        progress()
    table = np.array(counts)
    return {
        "objects": len(table),
        "noc_85": float(table[:, 0].mean()),
        "noc_90": float(table[:, 1].mean()),
        "failed_85": float((table[:, 0] == MOST_CLICKS).mean()),
        "failed_90": float((table[:, 1] == MOST_CLICKS).mean()),
        "ms": _milliseconds(seconds),
    }


def box_report(figures: BoxFigures) -> dict[str, Any]:
    """Means by method and size, the gain of refinement with its interval, milliseconds."""
    areas = np.array(figures.areas)
    rows_of_size: dict[str, Any] = {"all": np.ones(len(areas), bool)}
    rows_of_size |= {name: (areas >= low) & (areas < high) for name, (low, high) in SIZES.items()}
    report: dict[str, Any] = {"objects": {name: int(rows.sum()) for name, rows in rows_of_size.items()}}
    for kind, values in (("iou", figures.iou), ("boundary_iou", figures.boundary)):
        report[kind] = {
            method: {
                name: float(np.mean(np.array(row)[rows])) if rows.any() else None for name, rows in rows_of_size.items()
            }
            for method, row in values.items()
        }
    for method, baseline in GAINS:
        gain = np.array(figures.boundary[method]) - np.array(figures.boundary[baseline])
        low, high = mean_interval(gain)
        report[f"{method}_minus_{baseline}_boundary_iou"] = {"mean": float(gain.mean()), "low": low, "high": high}
    report["ms"] = _milliseconds(figures.seconds)
    return report


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % confidence interval of the mean, by bootstrap over the objects."""
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(values[draws].mean(1), (2.5, 97.5))
    return float(low), float(high)


def _milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    values = 1000 * np.array(seconds or [0.0])
    return {"p50": float(np.percentile(values, 50)), "p95": float(np.percentile(values, 95))}


def box_text(report: dict[str, Any]) -> str:
    """Write `box_report` as a text table."""
    sizes = list(report["objects"])
    lines = ["objects: " + ", ".join(f"{count} {size}" for size, count in report["objects"].items())]
    for kind in ("iou", "boundary_iou"):
        rows = [[method, *(means[size] for size in sizes)] for method, means in report[kind].items()]
        lines.append(tabulate(rows, (kind.replace("_", " "), *sizes), "plain", floatfmt=".3f", missingval="-"))
    for method, baseline in GAINS:
        gain = report[f"{method}_minus_{baseline}_boundary_iou"]
        interval = f"{gain['mean']:+.4f} (95 %: {gain['low']:+.4f} to {gain['high']:+.4f})"
        lines.append(f"{method} minus {baseline}, boundary IoU: {interval}")
    return "\n".join([*lines, _ms_line(report["ms"])])


def clicks_text(report: dict[str, Any]) -> str:
    """Write the figures of `measure_clicks` as text."""
    return "\n".join(
        [
            f"{report['objects']} objects, at most {MOST_CLICKS} clicks",
            f"NoC@85 {report['noc_85']:.2f} ({100 * report['failed_85']:.0f} % not reached)",
            f"NoC@90 {report['noc_90']:.2f} ({100 * report['failed_90']:.0f} % not reached)",
            _ms_line(report["ms"]),
        ]
    )


def _ms_line(ms: dict[str, float]) -> str:
    return f"milliseconds a prompt: p50 {ms['p50']:.0f}, p95 {ms['p95']:.0f}"
