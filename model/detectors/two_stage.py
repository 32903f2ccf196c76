"""detectron2's two-stage detectors, plain and cascaded, with the Mask Transfiner mask branch."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, paste_masks_in_image
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, detector_postprocess
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    build_mask_head,
    select_foreground_proposals,
)
from detectron2.structures import Instances
from torch import Tensor

from model.detectors.ignored_regions import RegionIgnoringROIHeads
from model.mask_head.roi_features import RefinementPooler

MASK_THRESHOLD = 0.5


@META_ARCH_REGISTRY.register()
class TransfinerRCNN(GeneralizedRCNN):
    """Mask Transfiner on a two-stage detector; inputs and outputs are detectron2's.

    In training an input may hold ``ignored`` (bool, H x W): places that are neither objects nor background.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """As detectron2's, with a region proposal network that excludes ignored regions from its background."""
        if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN":
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RegionIgnoringRPN"
        arguments: dict[str, Any] = super().from_config(cfg)
        return arguments

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses by name in training, else a dict with ``instances`` an image."""
        if self.training:
            self.proposal_generator.ignored = self.roi_heads.ignored = [
                image.get("ignored") for image in batched_inputs
            ]
        return super().forward(batched_inputs)

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
    """Scale boxes and masks of the network's input to the original image, without empty boxes.

    The masks' probabilities stay as ``mask_probabilities`` (R, S, S), from edge to edge of the boxes.
    """
    if result.has("pred_masks"):
        result.mask_probabilities = result.pred_masks[:, 0]
    output = detector_postprocess(result, height, width, MASK_THRESHOLD)
    if output.has("pred_coarse_masks"):
        coarse = output.pred_coarse_masks[:, 0]
        shape = (height, width)
        masks = (
            paste_masks_in_image(coarse, output.pred_boxes.tensor, shape, MASK_THRESHOLD)
            if len(output)
            else torch.zeros((0, *shape), dtype=torch.bool, device=coarse.device)
        )
        output.pred_coarse_masks = masks
    return output


class RefinedMaskBranch(RegionIgnoringROIHeads):
    """The mask branch: a RoI pyramid and the refining mask head in place of one RoI feature and a plain head."""

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if not cfg.MODEL.MASK_ON:
            return {}
        features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        head = cfg.MODEL.ROI_MASK_HEAD
        channels, size = input_shape[features[0]].channels, head.POOLER_RESOLUTION
        scales = tuple(1.0 / input_shape[name].stride for name in features)
        return {
            "mask_in_features": features,
            "mask_pooler": RefinementPooler(
                channels,
                size,
                scales,
                head.POOLER_SAMPLING_RATIO,
                p2_branch=cfg.MODEL.TRANSFINER.AUXILIARY_BRANCHES,
                finer_by=cfg.MODEL.TRANSFINER.FINER_BY,
            ),
            "mask_head": build_mask_head(cfg, ShapeSpec(channels=channels, height=size, width=size)),
        }

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        boxes = [i.proposal_boxes if self.training else i.pred_boxes for i in instances]
        pyramid = self.mask_pooler([features[name] for name in self.mask_in_features], boxes)
        return self.mask_head(pyramid, instances)


@ROI_HEADS_REGISTRY.register()
class TransfinerROIHeads(RefinedMaskBranch):
    """Faster R-CNN's box branch, detectron2's, unchanged."""


@ROI_HEADS_REGISTRY.register()
class TransfinerCascadeROIHeads(RefinedMaskBranch, CascadeROIHeads):
    """Cascade R-CNN's three box stages, detectron2's, unchanged; masks are read in the boxes of the last one.

    Set ``MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG``: detectron2's cascade asks for it.
    """
