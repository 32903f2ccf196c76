"""Measure a checkpoint in bf16 and fp32: AP of both on one set, IoU of single masks, and time.

The networks take turns at every image, so what slows the machine slows both.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from tabulate import tabulate
from torch import nn

from model.checkpoints.metadata import CARD_FILE, read_metadata, update_metadata
from model.files import write_text
from model.inference.precision import MOST_AP_LOST, keeps_ap, to_bf16
from model.instance import iou_matrix
from training.datasets import AnySet, usable_samples
from training.datasets.loader import to_test_input
from training.evaluation.coco_format import TruthBuilder, instance_results
from training.evaluation.run import infer, load_for_evaluation
from training.metrics.coco import MASK_KINDS, image_weights, resampled_ap

SHOWN_FROM = 0.5
_RESAMPLES, _INTERVAL = 2000, (0.025, 0.975)
_SECTION = "## Precision"


def compare_precisions(
    directory: Path, samples: AnySet, *, ratio: float = 0.02, progress: Callable[[], object] = int
) -> dict[str, Any]:
    """Measure a checkpoint in fp32 and in bf16 on a CPU.

    Args:
        samples: the checkpoint's own validation set. ratio: of the boundary's width to the image diagonal.
        progress: called after each image.

    Returns:
        ``mask_ap`` and ``boundary_ap``: fp32, bf16 and their difference with the interval that holds 95 % of its
        values when images are drawn anew (paired bootstrap), as fractions; ``single_masks``: IoU of each mask shown
        (score >= 0.5) with the likeliest bf16 mask of its class; ``cpu_ms``: processor time an image, medians.

    Raises:
        ValueError: the network has no bf16, or the set has other classes.
    """
    networks: dict[str, nn.Module] = {}
    for precision in ("fp32", "bf16"):
        networks[precision], cfg, names = load_for_evaluation(directory, "cpu")
    to_bf16(networks["bf16"])
    if names != samples.class_names:
        raise ValueError(f"the checkpoint knows {', '.join(names)}; the set has {', '.join(samples.class_names)}")
    truth = TruthBuilder(names)
    results: dict[str, list[dict[str, Any]]] = {precision: [] for precision in networks}
    seconds: dict[str, list[float]] = {precision: [] for precision in networks}
    overlaps: list[float] = []
    for index, sample in usable_samples(samples):
        truth.add(sample)
        record = to_test_input(sample, cfg)
        detections: dict[str, Instances] = {}
        for precision in ("fp32", "bf16") if index % 2 else ("bf16", "fp32"):
            began_s = time.process_time()
            detections[precision] = infer(networks[precision], record)
            seconds[precision].append(time.process_time() - began_s)
        for precision, instances in detections.items():
            results[precision] += instance_results(sample.image_id, instances)
        overlaps += _overlaps(detections["fp32"], detections["bf16"])
        progress()
    dataset = truth.build()
    single = np.array(overlaps)
    return {
        "images": len(truth.images),
        **ap_differences(dataset, results, ratio),
        "single_masks": {
            "count": len(single),
            "mean_iou": float(single.mean()) if len(single) else 1.0,
            "median_iou": float(np.median(single)) if len(single) else 1.0,
            "below_0.9": float((single < 0.9).mean()) if len(single) else 0.0,
        },
        "cpu_ms": {name: round(1000 * float(np.median(values)), 1) for name, values in seconds.items()},
        "threads": torch.get_num_threads(),
    }


def _overlaps(exact: Instances, half: Instances) -> list[float]:
    """IoU of each shown fp32 mask with the bf16 mask of its class that covers it best; 0 where there is none."""
    overlaps = []
    for label in exact.pred_classes.unique().tolist():
        exact_part = exact[(exact.pred_classes == label) & (exact.scores >= SHOWN_FROM)]
        half_part = half[half.pred_classes == label]
        if not len(half_part):
            overlaps += [0.0] * len(exact_part)
        elif len(exact_part):
            masks, other_masks = ([*instances.pred_masks.numpy().astype(bool)] for instances in (exact_part, half_part))
            overlaps += iou_matrix(masks, other_masks).max(1).tolist()
    return overlaps


def ap_differences(
    dataset: dict[str, Any], results: dict[str, list[dict[str, Any]]], ratio: float
) -> dict[str, dict[str, float]]:
    """Compute "mask_ap" and "boundary_ap" of both precisions, and the difference with its interval: fractions."""
    weights = image_weights(len(dataset["images"]), _RESAMPLES)
    points = {name: resampled_ap(dataset, records, weights, ratio=ratio) for name, records in results.items()}
    figures = {}
    for kind in MASK_KINDS:
        fp32, bf16 = (points[name][kind] for name in ("fp32", "bf16"))
        low, high = np.quantile((bf16 - fp32)[1:], _INTERVAL)
        row = {"fp32": fp32[0], "bf16": bf16[0], "difference": bf16[0] - fp32[0], "low": low, "high": high}
        figures[f"{kind}_ap"] = {name: float(value) / 100 for name, value in row.items()}
    return figures


def record_precision(directory: Path, outcome: dict[str, Any], set_name: str, command: str) -> None:
    """Write the outcome into the checkpoint's metadata, where `auto` looks for it, and into its card."""
    metadata = read_metadata(directory)
    figures = {"digest": metadata.get("digest"), "set": set_name, **outcome}
    update_metadata(directory, {"bf16": figures})
    card = directory / CARD_FILE
    card_text = card.read_text(encoding="utf-8") if card.is_file() else f"# {metadata['name']}\n"
    card_text = re.sub(rf"\n{_SECTION}\n.*?(?=\n## |\Z)", "", card_text, count=1, flags=re.DOTALL)
    section = f"{_SECTION}\n\n{precision_markdown(outcome, set_name)}\n\n```\n{command}\n```\n"
    write_text(card, f"{card_text.rstrip()}\n\n{section}")


def precision_markdown(outcome: dict[str, Any], set_name: str) -> str:
    """Write the outcome as a Markdown table, AP in points."""
    ms, single = outcome["cpu_ms"], outcome["single_masks"]
    rows = []
    for kind in ("mask", "boundary"):
        ap = {name: 100 * value for name, value in outcome[f"{kind}_ap"].items()}
        interval = f"{ap['difference']:+.2f} ({ap['low']:+.2f} to {ap['high']:+.2f})"
        rows.append((f"{kind} AP", f"{ap['fp32']:.2f}", f"{ap['bf16']:.2f}", interval))
    times_faster = f"{ms['fp32'] / ms['bf16']:.2f} times faster"
    rows.append(("CPU ms an image", f"{ms['fp32']:.0f}", f"{ms['bf16']:.0f}", times_faster))
    lines = [
        f"On {outcome['images']} images of `{set_name}`, {outcome['threads']} thread(s) of a CPU; bf16 as "
        "`TRANSFINER_PRECISION` has it:",
        "",
        tabulate(rows, ("", "fp32", "bf16", "difference (95 %)"), "github", disable_numparse=True),
        "",
        f"Single masks: mean IoU {single['mean_iou']:.3f} with fp32's, median {single['median_iou']:.3f}; "
        f"{100 * single['below_0.9']:.1f} % of {single['count']} below 0.9. "
        + (
            "`auto` uses bf16 for these weights where the processor is fast at it."
            if keeps_ap(outcome)
            else f"`auto` keeps fp32: bf16 loses more than {100 * MOST_AP_LOST:.1f} points."
        ),
    ]
    return "\n".join(lines)
