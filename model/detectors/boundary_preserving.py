"""Boundary-preserving Mask R-CNN (Cheng et al., ECCV 2020): mask and boundary branches that inform each other.

The boundary branch reads finer RoI features of twice the resolution from P2; features are fused from mask to boundary
and back, and both branches predict per class.

Shape shorthand: R RoIs, K classes, C channels, S = 14 side of the RoI feature.
"""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, select_foreground_proposals
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from model.detectors.ignored_regions import RegionIgnoringROIHeads
from model.mask_head.losses import dice_loss
from model.mask_head.targets import crop_masks


class BoundaryPreservingHead(nn.Module):
    """RoI features (R, C, S, S) and boundary features (R, C, 2S, 2S) to logits of both, (R, K, 2S, 2S) each."""

    def __init__(self, channels: int, num_classes: int, num_conv: int = 4) -> None:
        super().__init__()
        self.mask_convolutions = nn.ModuleList(_convolution(channels) for _ in range(num_conv))
        self.downsample = _convolution(channels, stride=2)
        self.boundary_convolutions = nn.ModuleList(_convolution(channels) for _ in range(2))
        self.mask_to_boundary = nn.Conv2d(channels, channels, 1)
        self.boundary_to_mask = nn.Conv2d(channels, channels, 1)
        self.fusion = _convolution(channels)
        self.mask_deconv, self.boundary_deconv = (nn.ConvTranspose2d(channels, channels, 2, stride=2) for _ in range(2))
        self.mask_predictor, self.boundary_predictor = (nn.Conv2d(channels, num_classes, 1) for _ in range(2))
        for layer in (self.mask_to_boundary, self.boundary_to_mask, self.mask_deconv, self.boundary_deconv):
            weight_init.c2_msra_fill(layer)
        for predictor in (self.mask_predictor, self.boundary_predictor):
            nn.init.normal_(predictor.weight, std=0.001)
            assert predictor.bias is not None
            nn.init.zeros_(predictor.bias)

    def forward(self, features: Tensor, boundary_features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of masks and of boundaries."""
        mask = features
        for convolution in self.mask_convolutions:
            mask = F.relu(convolution(mask))
        boundary = F.relu(self.downsample(boundary_features)) + F.relu(self.mask_to_boundary(mask))
        for convolution in self.boundary_convolutions:
            boundary = F.relu(convolution(boundary))
        mask = F.relu(self.fusion(mask + F.relu(self.boundary_to_mask(boundary))))
        return (
            self.mask_predictor(F.relu(self.mask_deconv(mask))),
            self.boundary_predictor(F.relu(self.boundary_deconv(boundary))),
        )


@ROI_HEADS_REGISTRY.register()
class BoundaryPreservingROIHeads(RegionIgnoringROIHeads):
    """detectron2's box branch with the boundary-preserving mask branch."""

    @configurable
    def __init__(
        self,
        *,
        boundary_pooler: ROIPooler,
        boundary_head: BoundaryPreservingHead,
        boundary_weights: tuple[float, float],
        **others: Any,
    ) -> None:
        """``boundary_weights``: of the cross entropy and of the dice loss of boundaries."""
        super().__init__(**others)
        self.boundary_pooler = boundary_pooler
        self.mask_head = boundary_head
        self.boundary_weights = boundary_weights

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of the constructor from a configuration."""
        finest = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]]
        head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.COMPARISON
        classes = 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES
        given: dict[str, Any] = super().from_config(cfg, input_shape)
        return given | {
            "boundary_pooler": ROIPooler(
                2 * head.POOLER_RESOLUTION, (1.0 / finest.stride,), head.POOLER_SAMPLING_RATIO, "ROIAlignV2"
            ),
            "boundary_head": BoundaryPreservingHead(finest.channels, classes, head.NUM_CONV),
            "boundary_weights": (node.BOUNDARY_CROSS_ENTROPY_WEIGHT, node.BOUNDARY_DICE_WEIGHT),
        }

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        boxes = [i.proposal_boxes if self.training else i.pred_boxes for i in instances]
        maps = [features[name] for name in self.mask_in_features]
        masks, boundaries = self.mask_head(self.mask_pooler(maps, boxes), self.boundary_pooler(maps[:1], boxes))
        if not self.training:
            mask_rcnn_inference(masks, instances)
            return instances
        return {"loss_mask": mask_rcnn_loss(masks, instances)} | self._boundary_losses(boundaries, instances)

    def _boundary_losses(self, logits: Tensor, instances: list[Instances]) -> dict[str, Tensor]:
        classes = torch.cat([i.gt_classes for i in instances])
        if not len(classes):
            return {"loss_boundary": logits.sum() * 0}
        chosen = torch.zeros_like(classes) if logits.shape[1] == 1 else classes
        own = logits[torch.arange(len(classes), device=logits.device), chosen]
        truth = torch.cat([crop_masks(i, own.shape[-1]) for i in instances if len(i)]).float()
        target = laplacian_boundary(truth)
        cross_entropy, dice = self.boundary_weights
        return {
            "loss_boundary": cross_entropy * F.binary_cross_entropy_with_logits(own, target)
            + dice * dice_loss(own.sigmoid(), target)
        }


def laplacian_boundary(masks: Tensor) -> Tensor:
    """Where a 3x3 Laplacian of (R, S, S) masks is positive: the inner band of one pixel, as the authors' targets."""
    kernel = masks.new_full((1, 1, 3, 3), -1.0)
    kernel[0, 0, 1, 1] = 8.0
    return (F.conv2d(masks[:, None], kernel, padding=1)[:, 0] > 0.1).float()


def _convolution(channels: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)
    weight_init.c2_msra_fill(layer)
    return layer
