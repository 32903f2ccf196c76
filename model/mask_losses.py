"""How the mask head is trained: from its outputs and the ground truth to named losses.

Shape shorthand: R foreground RoIs of all images, S0 = 28 the coarse side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from model import losses
from model.quadtree import find_nodes, sample_nodes
from model.targets import MaskTargets, boundary_target, mask_targets, semantic_target

if TYPE_CHECKING:
    from model.mask_head import CoarseOutput, TransfinerMaskHead
    from model.roi_pyramid import RoIPyramid


def mask_branch_losses(
    head: TransfinerMaskHead, pyramid: RoIPyramid, instances: list[Instances]
) -> dict[str, Tensor]:
    """Weighted losses of the mask branch by name.

    Args:
        pyramid: of the R foreground proposals; instances: the same proposals by image, with ``proposal_boxes``,
            ``gt_classes`` and ``gt_masks``. Images without any foreground train on.
    """
    output = head.coarse(pyramid)
    boundary = head.boundary(output)
    semantic = {"loss_semantic": _semantic_loss(head, pyramid, instances)}
    if sum(len(image) for image in instances) == 0:
        nothing = losses.no_foreground(
            output.logits, output.incoherence, boundary, *head.encoder.parameters()
        )
        return semantic | {
            f"loss_mask{part}": nothing for part in ("", "_incoherence", "_refine", "_boundary")
        }
    root, weights = head.sizes[0], head.loss_weights
    targets = mask_targets(instances, [head.coarse_size, *head.sizes], root, head.settings.incoherence_target)
    truth = targets.masks[root]
    _log_accuracy(losses.select_class(output.logits, targets.classes), truth)
    return semantic | {
        "loss_mask": weights["coarse"] * losses.coarse_mask_loss(output.logits, truth, targets.classes),
        "loss_mask_incoherence": weights["incoherence"]
        * losses.incoherence_loss(output.incoherence, targets.incoherence),
        "loss_mask_refine": weights["refine"] * _refinement_loss(head, pyramid, output, targets),
        "loss_mask_boundary": weights["boundary"] * losses.boundary_loss(boundary, boundary_target(truth)),
    }


def _semantic_loss(head: TransfinerMaskHead, pyramid: RoIPyramid, instances: list[Instances]) -> Tensor:
    logits = head.predictor_semantic_s(pyramid.semantic)
    height, width = logits.shape[-2:]
    target, valid = semantic_target(instances, height, width, round(pyramid.strides[0]))
    return losses.semantic_loss(logits, target, valid) * head.loss_weights["semantic"]


def _refinement_loss(
    head: TransfinerMaskHead, pyramid: RoIPyramid, output: CoarseOutput, targets: MaskTargets
) -> Tensor:
    """L1 on the nodes and the reference points of (at most ``train_instance_limit``) instances."""
    settings = head.settings
    chosen = _choose(len(targets.classes), settings.train_instance_limit).to(targets.classes.device)
    coarse = losses.select_class(output.logits, targets.classes)[chosen].detach().float().sigmoid()
    incoherence = output.incoherence[chosen].detach().float().sigmoid()
    found = find_nodes(incoherence, head.sizes, list(settings.thresholds_train))
    kept, levels = sample_nodes(
        found, len(chosen), settings.samples_per_level, settings.min_nodes_per_level, head.permutation
    )
    if len(kept) == 0:  # nothing incoherent found (yet): the reference points alone train the encoder
        kept = torch.arange(len(chosen), device=chosen.device)
        levels = [nodes.select(nodes.roi < 0) for nodes in found]
    references, values = head.refine(pyramid.select(chosen), coarse, levels, kept)
    truth = {size: masks[chosen] for size, masks in targets.masks.items()}
    wanted = [nodes.of(truth[size]) for nodes, size in zip(levels, head.sizes, strict=True)]
    wanted.append(truth[head.coarse_size][kept].flatten())
    return losses.refinement_loss(torch.cat([*values, references.flatten()]), torch.cat(wanted))


def _choose(available: int, limit: int) -> Tensor:
    """Every index, or a random ``limit`` of them in order (the released code takes the first of the batch)."""
    if limit == 0 or available <= limit:
        return torch.arange(available)
    return torch.randperm(available)[:limit].sort().values


def _log_accuracy(logits: Tensor, target: Tensor) -> None:
    """Share of coarse mask pixels on the right side, in the event storage (as detectron2's mask head logs it)."""
    right = ((logits.detach() > 0) == (target > 0.5)).float().mean()
    get_event_storage().put_scalar("mask_rcnn/accuracy", right.item())
