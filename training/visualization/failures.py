"""Detections whose outline is furthest from the truth's: 1 - boundary IoU of matched pairs, the worst first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from torch import nn

from training.datasets import AnySet, usable_samples
from training.datasets.loader import to_network_input
from training.evaluation.incoherence_analysis import match_to_truth
from training.metrics.coco import boundary_mask


def boundary_error(mask: np.ndarray, truth: np.ndarray, ratio: float = 0.02) -> float:
    """1 - IoU of two bool H x W masks' inner bands; 0 where both are empty."""
    return 1 - overlap(boundary_mask(mask, ratio), boundary_mask(truth, ratio))


def overlap(mask: np.ndarray, other: np.ndarray) -> float:
    """IoU of bool masks; 1 where both are empty."""
    union = int((mask | other).sum())
    return int((mask & other).sum()) / union if union else 1.0


@torch.inference_mode()
def find_failures(
    network: nn.Module,
    cfg: CfgNode,
    samples: AnySet,
    *,
    count: int = 8,
    min_score: float = 0.5,
    ratio: float = 0.02,
    progress: Callable[[int], object] = int,
) -> list[dict[str, Any]]:
    """The ``count`` worst detections of a set: image, image_id, truth, found, box_xyxy, name, error, mask_iou."""
    resize = [ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
    cases: list[dict[str, Any]] = []
    for index, sample in usable_samples(samples):
        instances = network([to_network_input(sample, resize, cfg.INPUT.FORMAT)])[0]["instances"].to("cpu")
        instances = instances[instances.scores >= min_score]
        matched, partner = match_to_truth(sample, instances.pred_boxes, instances.pred_classes)
        for detection, truth in zip(matched.tolist(), partner.tolist(), strict=True):
            predicted, right = instances.pred_masks[detection].numpy().astype(bool), sample.masks[truth]
            cases.append(
                {
                    "image": sample.image,
                    "image_id": sample.image_id,
                    "truth": right,
                    "found": predicted,
                    "box_xyxy": instances.pred_boxes.tensor[detection].numpy(),
                    "name": samples.class_names[int(sample.classes[truth])],
                    "error": boundary_error(predicted, right, ratio),
                    "mask_iou": overlap(predicted, right),
                }
            )
        cases = sorted(cases, key=lambda case: -case["error"])[:count]
        progress(index + 1)
    return cases
