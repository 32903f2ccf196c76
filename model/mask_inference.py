"""How the mask head predicts: coarse masks of all instances, refined ones of those that the settings choose.

Shape shorthand: R RoIs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from model.coarse_mask import CoarseOutput
from model.quadtree import boundary_uncertainty, propagate
from model.quadtree_refinement import resize_masks
from model.refinement_limits import LimitNodes, node_limit, rois_to_refine

if TYPE_CHECKING:
    from model.mask_head import TransfinerMaskHead
    from model.roi_pyramid import RoIPyramid


def predict_masks(head: TransfinerMaskHead, pyramid: RoIPyramid, instances: list[Instances]) -> list[Instances]:
    """Every instance is refined that the settings do not leave out."""
    output = head.coarse(pyramid, torch.cat([i.pred_classes for i in instances]))
    coarse = output.logits.float().sigmoid()
    upsampled = resize_masks(coarse, head.output_size)
    masks, uncertainty, found = upsampled, coarse.new_zeros(len(coarse)), coarse.new_zeros(len(coarse))
    chosen = rois_to_refine(instances, head.settings)
    if len(chosen) and head.sizes:
        refined, doubt, nodes = refine_masks(
            head,
            pyramid.select(chosen),
            output.select(chosen),
            node_limit(instances, chosen, head.settings.test_node_budget),
        )
        masks = upsampled.index_copy(0, chosen, refined)
        uncertainty = uncertainty.index_copy(0, chosen, doubt)
        found = found.index_copy(0, chosen, nodes.to(found.dtype))
    counts = [len(image) for image in instances]
    for image, mask, plain, doubt, nodes in zip(
        instances,
        masks.split(counts),
        upsampled.split(counts),
        uncertainty.split(counts),
        found.split(counts),
        strict=True,
    ):
        image.pred_masks, image.uncertainty, image.incoherent_nodes = mask[:, None], doubt, nodes
        if head.settings.keep_coarse:
            image.pred_coarse_masks = plain[:, None]
    return instances


def refine_masks(
    head: TransfinerMaskHead,
    pyramid: RoIPyramid,
    output: CoarseOutput,
    limit: LimitNodes | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Refined probabilities (R, 112, 112) of R instances, each one's uncertainty (R,) and incoherent nodes (R,)."""
    settings = head.settings
    coarse = output.logits.float().sigmoid()
    levels = head.find_nodes(output)
    found = torch.stack([level.counts(len(coarse)) for level in levels]).sum(0)
    if limit is not None:
        levels = limit(levels, [level.float().sigmoid() for level in output.incoherence])
    values = head.refine.in_parts(pyramid, coarse, levels, settings.test_sequence_nodes)
    values = [value.float() for value in values]
    masks = propagate(coarse, levels, values, head.sizes, settings.propagation)
    if settings.dilate_and_blur:
        masks = _binomial_blur(masks)
    return masks, boundary_uncertainty(levels, values, len(coarse)), found


def _binomial_blur(masks: Tensor) -> Tensor:
    """7x7 binomial blur with zero padding, (R, S, S)."""
    row = masks.new_tensor([1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0]) / 64
    return F.conv2d(masks[:, None], torch.outer(row, row)[None, None], padding=3)[:, 0]
