"""Standard RoI heads with the Mask Transfiner mask branch."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    StandardROIHeads,
    build_mask_head,
    select_foreground_proposals,
)
from detectron2.structures import Instances
from torch import Tensor

from model.roi_pyramid import RefinementPooler


@ROI_HEADS_REGISTRY.register()
class TransfinerROIHeads(StandardROIHeads):
    """detectron2's box branch unchanged; the mask branch reads a RoI pyramid."""

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
