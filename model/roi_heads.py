"""detectron2's RoI heads, plain and cascaded, with the Mask Transfiner mask branch."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    StandardROIHeads,
    build_mask_head,
    select_foreground_proposals,
)
from detectron2.structures import Instances
from torch import Tensor

from model.roi_pyramid import RefinementPooler


class RefinedMaskBranch(StandardROIHeads):
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
