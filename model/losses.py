"""Losses of the mask branch (section 3.3, with the released code's exact terms).

Shape shorthand: R RoIs, S side of a grid, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def coarse_mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross entropy of each RoI's own class's mask, (R, S, S) both."""
    return F.binary_cross_entropy_with_logits(logits, target)


def incoherence_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice loss plus mean binary cross entropy of the incoherent region; both (R, S, S)."""
    return dice_loss(logits.sigmoid(), target) + F.binary_cross_entropy_with_logits(logits, target)


def dice_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 - (2 |P and T| + 1) / (|P| + |T| + 1), averaged over R (released code's smoothing of one)."""
    overlap = 2 * (probabilities * target).flatten(1).sum(1)
    total = probabilities.flatten(1).sum(1) + target.flatten(1).sum(1)
    return (1 - (overlap + 1) / (total + 1)).mean()


def refinement_loss(refined: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of refined probabilities and labels, (T,) both; zero where nothing was refined."""
    return F.l1_loss(refined, target) if len(refined) else refined.sum()


def boundary_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The released code adds the same mean cross entropy twice; (R, S, S) both."""
    return 2 * F.binary_cross_entropy_with_logits(logits, target)


def semantic_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean cross entropy over the valid places; (N, 1, H, W) all, ``valid`` bool."""
    terms = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (terms * valid).sum() / valid.sum().clamp(min=1)


def no_foreground(*outputs: Tensor) -> Tensor:
    """A zero that keeps every output in the graph: DDP wants gradients for all parameters on every process."""
    return torch.stack([output.sum() * 0 for output in outputs]).sum()
