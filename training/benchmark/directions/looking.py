"""What a trained mask head makes of the shared detections, as COCO results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.layers import paste_masks_in_image
from torch import nn

from training.benchmark.directions.shared import SharedDetector
from training.evaluation.coco_format import detections

MASK_THRESHOLD = 0.5


@torch.inference_mode()
def look(
    heads: nn.Module, detector: SharedDetector, scenes: int, progress: Callable[[int], object] = int
) -> list[dict[str, Any]]:
    """COCO results of the first ``scenes`` held-out scenes; RLE counts as text, ready for JSON."""
    heads.eval()
    results = []
    for index in range(scenes):
        scene = detector.load("val", index)
        found = scene.found()
        if len(found):
            (found,) = heads._forward_mask(scene.features, [found])  # type: ignore[operator]
            masks = paste_masks_in_image(found.pred_masks[:, 0], found.pred_boxes.tensor, scene.size_hw, MASK_THRESHOLD)
            results += detections(index, masks.numpy(), found.scores.numpy(), found.pred_classes.numpy())
        progress(index + 1)
    for one in results:
        packed = one["segmentation"]
        one["segmentation"] = {"size": list(packed["size"]), "counts": packed["counts"].decode("ascii")}
    return results
