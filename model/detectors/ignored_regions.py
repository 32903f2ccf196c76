"""Regions that training ignores: what lies mostly in one is neither an object nor background.

Crowds, boxes without masks and drawings that cannot be read are such regions. Anchors and proposals in them that match
no object are left out of the losses, which would teach them as background.

Shapes: H, W of the network's input; R boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor
from torch.nn import functional as F

#: A box with at least this share of its area in ignored regions is left out.
LEAST_SHARE = 0.5


@torch.no_grad()
def mostly_ignored(boxes_xyxy: Tensor, ignored_hw: Tensor | None) -> Tensor:
    """Which boxes lie mostly in ignored regions.

    Args:
        boxes_xyxy: (R, 4), pixels; what lies outside the image does not count.
        ignored_hw: bool (H, W); None: nothing is ignored.

    Returns:
        Bool (R,).
    """
    if ignored_hw is None:
        return torch.zeros(len(boxes_xyxy), dtype=torch.bool, device=boxes_xyxy.device)
    height, width = ignored_hw.shape
    ignored = ignored_hw.to(boxes_xyxy.device, torch.int64)
    sums = F.pad(ignored.cumsum(0).cumsum(1), (1, 0, 1, 0))  # sums[y, x]: ignored pixels above y and left of x
    corners = boxes_xyxy.round().long()
    left, right = corners[:, 0].clamp(0, width), corners[:, 2].clamp(0, width)
    top, bottom = corners[:, 1].clamp(0, height), corners[:, 3].clamp(0, height)
    ignored_area = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    area = (right - left) * (bottom - top)
    return (area > 0) & (ignored_area >= LEAST_SHARE * area)


@PROPOSAL_GENERATOR_REGISTRY.register()
class RegionIgnoringRPN(RPN):
    """detectron2's region proposal network, whose background excludes `ignored`: a mask or None for each image."""

    ignored: Sequence[Tensor | None] = ()

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As detectron2's; unmatched anchors in ignored regions are labelled -1, which the losses leave out."""
        labels, boxes = super().label_and_sample_anchors(anchors, gt_instances)
        if any(mask is not None for mask in self.ignored):
            every_anchor = Boxes.cat(anchors).tensor
            for label, mask in zip(labels, self.ignored, strict=True):
                label[(label == 0) & mostly_ignored(every_anchor, mask)] = -1
        return labels, boxes


class RegionIgnoringROIHeads(StandardROIHeads):
    """detectron2's heads, whose background excludes `ignored`: a mask or None for each image."""

    ignored: Sequence[Tensor | None] = ()

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """As detectron2's, after proposals in ignored regions that match no object are taken out."""
        if any(mask is not None for mask in self.ignored):
            least_iou = self.proposal_matcher.thresholds[-2]
            proposals = [
                image[~mostly_ignored(image.proposal_boxes.tensor, mask) | _matches(image, target, least_iou)]
                for image, target, mask in zip(proposals, targets, self.ignored, strict=True)
            ]
        samples: list[Instances] = super().label_and_sample_proposals(proposals, targets)
        return samples

    def _match_and_label_boxes(self, proposals: list[Instances], stage: int, targets: list[Instances]) -> Any:
        """The later stages of a cascade: as detectron2's, without background in ignored regions."""
        labelled_proposals = super()._match_and_label_boxes(proposals, stage, targets)
        if not any(mask is not None for mask in self.ignored):
            return labelled_proposals
        return [
            image[(image.gt_classes != self.num_classes) | ~mostly_ignored(image.proposal_boxes.tensor, mask)]
            for image, mask in zip(labelled_proposals, self.ignored, strict=True)
        ]


def _matches(proposals: Instances, targets: Instances, least_iou: float) -> Tensor:
    if not len(targets):
        return torch.zeros(len(proposals), dtype=torch.bool, device=proposals.proposal_boxes.device)
    return pairwise_iou(proposals.proposal_boxes, targets.gt_boxes).max(1).values >= least_iou
