"""Mask Scoring R-CNN (Huang et al., CVPR 2019): a head learns how good each mask is, and corrects its score.

Shape shorthand: R RoIs, K classes, C channels, S side of a mask.
"""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, select_foreground_proposals
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from model.detectors.ignored_regions import RegionIgnoringROIHeads
from model.mask_head.targets import crop_masks, image_masks


class MaskIoUHead(nn.Module):
    """Four 3x3 convolutions on [RoI feature, predicted mask], the last with stride 2, then three linear layers."""

    def __init__(self, channels: int, side: int, num_classes: int, fc_dim: int = 1024) -> None:
        super().__init__()
        widths = [channels + 1, channels, channels, channels, channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[k], widths[k + 1], 3, stride=2 if k == 3 else 1, padding=1) for k in range(4)
        )
        flat = channels * (-(-side // 2)) ** 2
        self.linear = nn.ModuleList([nn.Linear(flat, fc_dim), nn.Linear(fc_dim, fc_dim)])
        self.predictor = nn.Linear(fc_dim, num_classes)
        for convolution in self.convolutions:
            weight_init.c2_msra_fill(convolution)
        for layer in self.linear:
            weight_init.c2_xavier_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Mask IoU of each class (R, K) from RoI features (R, C, S, S) and mask probabilities (R, 2S, 2S)."""
        hidden = torch.cat([features, F.max_pool2d(masks[:, None], 2)], dim=1)
        for convolution in self.convolutions:
            hidden = F.relu(convolution(hidden))
        hidden = hidden.flatten(1)
        for layer in self.linear:
            hidden = F.relu(layer(hidden))
        out: Tensor = self.predictor(hidden)
        return out


@ROI_HEADS_REGISTRY.register()
class MaskScoringROIHeads(RegionIgnoringROIHeads):
    """detectron2's heads whose instances are scored by class score times predicted mask IoU."""

    @configurable
    def __init__(self, *, mask_iou_head: MaskIoUHead, mask_iou_weight: float, **others: Any) -> None:
        super().__init__(**others)
        self.mask_iou_head = mask_iou_head
        self.mask_iou_weight = mask_iou_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of the constructor from a configuration."""
        channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
        head = MaskIoUHead(
            channels,
            cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION,
            cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            cfg.MODEL.COMPARISON.MASK_IOU_FC_DIM,
        )
        weight = cfg.MODEL.COMPARISON.MASK_IOU_WEIGHT
        given: dict[str, Any] = super().from_config(cfg, input_shape)
        return given | {"mask_iou_head": head, "mask_iou_weight": weight}

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        boxes = [i.proposal_boxes if self.training else i.pred_boxes for i in instances]
        pooled = self.mask_pooler([features[name] for name in self.mask_in_features], boxes)
        logits = self.mask_head.layers(pooled)
        if self.training:
            return self._losses(pooled, logits, instances)
        mask_rcnn_inference(logits, instances)
        masks = torch.cat([i.pred_masks for i in instances])[:, 0]
        classes = torch.cat([i.pred_classes for i in instances])
        quality = _of_class(self.mask_iou_head(pooled, masks), classes).clamp(0, 1)
        for image, part in zip(instances, quality.split([len(i) for i in instances]), strict=True):
            image.scores = image.scores * part
        return instances

    def _losses(self, pooled: Tensor, logits: Tensor, instances: list[Instances]) -> dict[str, Tensor]:
        losses = {"loss_mask": mask_rcnn_loss(logits, instances) * self.mask_head.loss_weight}
        classes = torch.cat([i.gt_classes for i in instances])
        if not len(classes):
            nothing = sum(parameter.sum() for parameter in self.mask_iou_head.parameters())
            return losses | {"loss_mask_iou": 0 * nothing}
        own = _of_class(logits, classes)
        target = mask_iou_target(own.detach() > 0, instances)
        scores = _of_class(self.mask_iou_head(pooled, own.detach().sigmoid()), classes)
        # The paper trains only on masks that overlap their object at all.
        error = F.mse_loss(scores, target, reduction="none")[target > 0]
        return losses | {"loss_mask_iou": self.mask_iou_weight * error.sum() / max(len(error), 1)}


def mask_iou_target(predicted: Tensor, instances: list[Instances]) -> Tensor:
    """IoU of bool (R, S, S) masks with the whole object, of which a box may show only a part; (R,)."""
    present = [i for i in instances if len(i)]
    truth = torch.cat([crop_masks(i, predicted.shape[-1]) for i in present])
    shown = torch.cat([_shown_share(i) for i in present]).to(predicted.device)
    common = (predicted & truth).flatten(1).sum(1).float()
    whole = truth.flatten(1).sum(1).float() / shown.clamp(min=1e-6)
    union = predicted.flatten(1).sum(1) + whole - common
    return torch.where(union > 0, common / union.clamp(min=1e-6), torch.zeros_like(union))


def _shown_share(instances: Instances) -> Tensor:
    """Share of each object's pixels inside its proposal box, (M,)."""
    shares = []
    for mask, box in zip(image_masks(instances), instances.proposal_boxes.tensor.tolist(), strict=True):
        left, top, right, bottom = (max(round(edge), 0) for edge in box)
        shares.append(mask[top:bottom, left:right].sum() / mask.sum().clamp(min=1))
    return torch.stack(shares).float()


def _of_class(values: Tensor, classes: Tensor) -> Tensor:
    """Each RoI's own class of (R, K, ...), or the only one."""
    if values.shape[1] == 1:
        return values[:, 0]
    return values[torch.arange(len(classes), device=values.device), classes]
