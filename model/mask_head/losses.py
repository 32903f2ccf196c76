"""Losses of the mask branch: from outputs and ground truth to named losses (section 3.3, the released code's terms).

Weights multiply the terms that they belong to; means stay means over the number of terms, so that a batch of
unimportant instances moves the network little.

Shape shorthand: R foreground RoIs of all images, S0 = 28 the coarse side, S side of a grid, T tokens.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn import functional as F

from model.mask_head.quadtree import Nodes, sample_nodes
from model.mask_head.targets import (
    MaskTargets,
    PixelWeights,
    boundary_target,
    mask_targets,
    pixel_weights,
    semantic_target,
)

if TYPE_CHECKING:
    from model.mask_head.head import CoarseOutput, TransfinerMaskHead
    from model.mask_head.roi_features import RoIPyramid


def mask_branch_losses(
    head: TransfinerMaskHead, pyramid: RoIPyramid, instances: list[Instances], output: CoarseOutput | None = None
) -> dict[str, Tensor]:
    """Weighted losses of the mask branch by name.

    Args:
        pyramid: of the R foreground proposals; instances: the same proposals by image, with ``proposal_boxes``,
            ``gt_classes`` and ``gt_masks``. Images without any foreground train on.
        output: of ``head.coarse``, where the caller needs it, too.
    """
    if output is None:
        output = head.coarse(pyramid, torch.cat([image.gt_classes for image in instances]))
    if sum(len(image) for image in instances) == 0:
        losses = _zero_losses(head, output)
    else:
        losses = _main_losses(head, pyramid, output, instances)
    if head.auxiliary:
        losses |= _auxiliary_losses(head, pyramid, output, instances)
    return {f"loss_{name}": value * head.loss_weights[WEIGHTS[name]] for name, value in losses.items()}


# The key of LOSS_WEIGHTS for each term.
WEIGHTS = {
    "mask": "coarse",
    "mask_incoherence": "incoherence",
    "mask_refine": "refine",
    "mask_boundary": "boundary",
    "semantic": "semantic",
}


def _main_losses(
    head: TransfinerMaskHead, pyramid: RoIPyramid, output: CoarseOutput, instances: list[Instances]
) -> dict[str, Tensor]:
    """Coarse mask, and where there is a quadtree its detection and refinement."""
    root = 2 * head.coarse_size
    sides = sorted({head.coarse_size, root, *head.sizes})
    detection = head.detection
    regions = partial(detection.targets, sizes=head.sizes) if detection else _no_regions
    targets = mask_targets(instances, sides, regions)
    truth = targets.masks[root]
    weights = pixel_weights(instances, sides)
    _log_accuracy(output.logits, truth)
    losses = {"mask": coarse_mask_loss(output.logits, truth, weights.at(root) if weights else None)}
    if detection:
        losses["mask_incoherence"] = detection.loss(output.incoherence, targets.incoherence, weights)
    if head.encoder is not None:
        losses["mask_refine"] = _refinement_loss(head, pyramid, output, targets, weights)
    return losses


def _auxiliary_losses(
    head: TransfinerMaskHead, pyramid: RoIPyramid, output: CoarseOutput, instances: list[Instances]
) -> dict[str, Tensor]:
    """The released code's semantic branch on P2 and contour branch on the coarse head."""
    assert pyramid.semantic is not None
    semantic = head.predictor_semantic_s(pyramid.semantic)
    height, width = semantic.shape[-2:]
    target, valid = semantic_target(instances, height, width, round(pyramid.strides[0]))
    contour = head.boundary(output)
    if len(contour) == 0:
        edge = no_foreground(contour)
    else:
        side = contour.shape[-1]
        truth = mask_targets(instances, [side], _no_regions).masks[side]
        weights = pixel_weights(instances, [side])
        edge = boundary_loss(contour, boundary_target(truth), weights.at(side) if weights else None)
    return {"semantic": semantic_loss(semantic, target, valid), "mask_boundary": edge}


def _refinement_loss(
    head: TransfinerMaskHead,
    pyramid: RoIPyramid,
    output: CoarseOutput,
    targets: MaskTargets,
    weights: PixelWeights | None,
) -> Tensor:
    """Loss on the nodes and the reference points of (at most ``train_instance_limit``) instances."""
    settings = head.settings
    indices = _choose(len(targets.classes), settings.train_instance_limit).to(targets.classes.device)
    pyramid, output = pyramid.select(indices), output.select(indices)
    coarse = output.logits.detach().float().sigmoid()
    detected_nodes = head.find_nodes(output)
    if settings.region == "full":  # whole grids in their order: nothing to draw
        roi_indices, levels = torch.arange(len(indices), device=indices.device), detected_nodes
    else:
        roi_indices, levels = sample_nodes(
            detected_nodes, len(indices), settings.samples_per_level, settings.min_nodes_per_level, head.permutation
        )
    if len(roi_indices) == 0:  # nothing incoherent found (yet): the reference points alone train the encoder
        roi_indices = torch.arange(len(indices), device=indices.device)
        levels = [nodes.select(nodes.roi < 0) for nodes in detected_nodes]
    features = None if output.upsampled is None else output.upsampled.detach()
    references, values = head.refine(pyramid, coarse, levels, roi_indices, features)
    truth = {size: masks[indices] for size, masks in targets.masks.items()}
    labels = _at_tokens(head, truth, levels, roi_indices, len(references))
    token_weights = None
    if weights is not None:
        grids = {size: weights.at(size)[indices] for size in truth}
        token_weights = _at_tokens(head, grids, levels, roi_indices, len(references))
    return refinement_loss(torch.cat([*values, references]), labels, token_weights, kind=settings.refine_loss)


def _at_tokens(
    head: TransfinerMaskHead, grids: dict[int, Tensor], levels: list[Nodes], roi_indices: Tensor, references: int
) -> Tensor:
    """Values of (R, S, S) grids by side, at the nodes of each level and then at the kept RoIs' reference points."""
    nodes_of_grids = [nodes.of(grids[size]) for nodes, size in zip(levels, head.sizes, strict=True)]
    points = len(roi_indices) * head.coarse_size**2  # repeated where each level has a sequence of its own
    nodes_of_grids.append(grids[head.coarse_size][roi_indices].flatten().repeat(references // max(points, 1)))
    return torch.cat(nodes_of_grids)


def _no_regions(_: Instances) -> list[Tensor]:
    return []


def _choose(available: int, limit: int) -> Tensor:
    """Every index, or a random ``limit`` of them in order (the released code takes the first of the batch)."""
    if limit == 0 or available <= limit:
        return torch.arange(available)
    return torch.randperm(available)[:limit].sort().values


def _zero_losses(head: TransfinerMaskHead, output: CoarseOutput) -> dict[str, Tensor]:
    """Zeros for a batch without foreground that keep every parameter in the graph."""
    losses = {"mask": no_foreground(output.logits)}
    if head.detection:
        losses["mask_incoherence"] = no_foreground(*output.incoherence)
    if head.encoder is not None:
        losses["mask_refine"] = no_foreground(*head.encoder.parameters())
    return losses


def _log_accuracy(logits: Tensor, target: Tensor) -> None:
    """Share of coarse mask pixels on the right side, in the event storage (as detectron2's mask head logs it)."""
    accuracy = ((logits.detach() > 0) == (target > 0.5)).float().mean()
    get_event_storage().put_scalar("mask_rcnn/accuracy", accuracy.item())


def coarse_mask_loss(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean binary cross entropy of each RoI's own class's mask; all (R, S, S)."""
    return F.binary_cross_entropy_with_logits(logits, target, weights)


def incoherence_loss(logits: Tensor, target: Tensor, weights: PixelWeights | None = None) -> Tensor:
    """Dice loss plus mean binary cross entropy of the incoherent region; both (R, S, S)."""
    place_weights = weights.at(logits.shape[-1]) if weights is not None else None
    entropy = F.binary_cross_entropy_with_logits(logits, target, place_weights)
    return dice_loss(logits.sigmoid(), target, weights) + entropy


def dice_loss(probabilities: Tensor, target: Tensor, weights: PixelWeights | None = None) -> Tensor:
    """1 - (2 |P and T| + 1) / (|P| + |T| + 1), averaged over R (released code's smoothing of one).

    With weights a place counts in the three sums as often as its weight says, and an RoI in the mean.
    """
    overlap, total = 2 * probabilities * target, probabilities + target
    if weights is not None:
        places = weights.places[target.shape[-1]]
        overlap, total = overlap * places, total * places
    losses = 1 - (overlap.flatten(1).sum(1) + 1) / (total.flatten(1).sum(1) + 1)
    return (losses if weights is None else losses * weights.instances).mean()


def refinement_loss(refined: Tensor, target: Tensor, weights: Tensor | None = None, *, kind: str = "l1") -> Tensor:
    """Mean difference of refined probabilities and labels, all (T,); zero where nothing was refined.

    Args:
        kind: "l1" (released code) or "cross_entropy".
    """
    if len(refined) == 0:
        return refined.sum()
    if kind == "l1":
        return F.l1_loss(refined, target) if weights is None else ((refined - target).abs() * weights).mean()
    # In float32 and away from one: in bfloat16 the logarithm next to one is zero or far off.
    probabilities = refined.float().clamp(1e-4, 1 - 1e-4)
    return F.binary_cross_entropy_with_logits(probabilities.logit(), target.float(), weights)


def boundary_loss(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """The released code adds the same mean cross entropy twice; all (R, S, S)."""
    return 2 * F.binary_cross_entropy_with_logits(logits, target, weights)


def semantic_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean cross entropy over the valid places; (N, 1, H, W) all, ``valid`` bool."""
    terms = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (terms * valid).sum() / valid.sum().clamp(min=1)


def no_foreground(*outputs: Tensor) -> Tensor:
    """A zero that keeps every output in the graph: DDP wants gradients for all parameters on every process."""
    return torch.stack([output.sum() * 0 for output in outputs]).sum()
