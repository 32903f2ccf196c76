"""The whole detector: detectron2's two-stage architecture, whose results also carry the coarse masks when asked."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, detector_postprocess
from detectron2.structures import Instances

MASK_THRESHOLD = 0.5


@META_ARCH_REGISTRY.register()
class TransfinerRCNN(GeneralizedRCNN):
    """Mask Transfiner on a two-stage detector; inputs and outputs are detectron2's."""

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[Any]:
        """As detectron2's, with ``uncertainty`` and, where KEEP_COARSE is set, ``pred_coarse_masks`` beside it."""
        results = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        if not do_postprocess:
            return results
        sizes = [tuple(image["image"].shape[-2:]) for image in batched_inputs]
        return [
            {"instances": _to_image(result, image.get("height", size[0]), image.get("width", size[1]))}
            for result, image, size in zip(results, batched_inputs, sizes, strict=True)
        ]


def _to_image(result: Instances, height: int, width: int) -> Instances:
    """Scale boxes and masks of the network's input to the original image; empty boxes leave.

    The masks' probabilities stay beside them as ``mask_probabilities`` (R, S, S), from edge to edge of the boxes.
    """
    if result.has("pred_masks"):
        result.mask_probabilities = result.pred_masks[:, 0]
    scaled = detector_postprocess(result, height, width, MASK_THRESHOLD)
    if scaled.has("pred_coarse_masks"):
        coarse = scaled.pred_coarse_masks[:, 0]
        shape = (height, width)
        pasted = (
            paste_masks_in_image(coarse, scaled.pred_boxes.tensor, shape, MASK_THRESHOLD)
            if len(scaled)
            else torch.zeros((0, *shape), dtype=torch.bool, device=coarse.device)
        )
        scaled.pred_coarse_masks = pasted
    return scaled
