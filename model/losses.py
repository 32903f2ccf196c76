"""Losses of the mask branch (section 3.3, with the released code's exact terms).

Shape shorthand: R RoIs, S side of a grid, T tokens. Weights multiply the terms that they belong to; means stay means
over the number of terms, so that a batch of unimportant instances moves the network little.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.place_weights import PlaceWeights


def coarse_mask_loss(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean binary cross entropy of each RoI's own class's mask; all (R, S, S)."""
    return F.binary_cross_entropy_with_logits(logits, target, weights)


def incoherence_loss(logits: Tensor, target: Tensor, weights: PlaceWeights | None = None) -> Tensor:
    """Dice loss plus mean binary cross entropy of the incoherent region; both (R, S, S)."""
    everywhere = weights.at(logits.shape[-1]) if weights is not None else None
    entropy = F.binary_cross_entropy_with_logits(logits, target, everywhere)
    return dice_loss(logits.sigmoid(), target, weights) + entropy


def dice_loss(probabilities: Tensor, target: Tensor, weights: PlaceWeights | None = None) -> Tensor:
    """1 - (2 |P and T| + 1) / (|P| + |T| + 1), averaged over R (released code's smoothing of one).

    With weights a place counts in the three sums as often as its weight says, and an RoI in the mean.
    """
    overlap, total = 2 * probabilities * target, probabilities + target
    if weights is not None:
        places = weights.places[target.shape[-1]]
        overlap, total = overlap * places, total * places
    lost = 1 - (overlap.flatten(1).sum(1) + 1) / (total.flatten(1).sum(1) + 1)
    return (lost if weights is None else lost * weights.instances).mean()


def refinement_loss(refined: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean absolute difference of refined probabilities and labels, all (T,); zero where nothing was refined."""
    if len(refined) == 0:
        return refined.sum()
    return F.l1_loss(refined, target) if weights is None else ((refined - target).abs() * weights).mean()


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
