"""Losses of a set of predictions: one-to-one matching with the objects, then classes and boxes of matched pairs.

Source: DETR (Carion et al., ECCV 2020) with the focal class loss of Deformable DETR (Zhu et al., ICLR 2021).

Shape shorthand: Q queries, K classes, M objects of an image. Boxes are cx, cy, w, h as shares of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

ALPHA, GAMMA = 0.25, 2.0


@dataclass(frozen=True)
class Weights:
    """Of classes, box edges (L1) and box overlap (GIoU); in the matching as in the loss."""

    classes: float = 2.0
    l1: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True)
class Objects:
    """What an image shows: classes int64 (M,), boxes (M, 4)."""

    classes: Tensor
    boxes: Tensor


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, truth: Objects, weights: Weights) -> tuple[Tensor, Tensor]:
    """Pairs of the least total cost.

    Args:
        logits: (Q, K); boxes: (Q, 4).

    Returns:
        queries, objects: int64 (min(Q, M),) each.
    """
    share = logits.float().sigmoid()[:, truth.classes]
    positive = ALPHA * (1 - share) ** GAMMA * -(share + 1e-8).log()
    negative = (1 - ALPHA) * share**GAMMA * -(1 - share + 1e-8).log()
    distance = torch.cdist(boxes.float(), truth.boxes, p=1)
    overlap = generalized_box_iou(_corners(boxes.float()), _corners(truth.boxes))
    cost = weights.classes * (positive - negative) + weights.l1 * distance - weights.giou * overlap
    queries, objects = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(queries, device=logits.device), torch.as_tensor(objects, device=logits.device)


def set_losses(
    logits: Tensor,
    boxes: Tensor,
    truths: list[Objects],
    pairs: list[tuple[Tensor, Tensor]],
    weights: Weights,
) -> dict[str, Tensor]:
    """Weighted losses ``class``, ``box`` and ``giou``, each divided by the number of objects of the batch.

    Args:
        logits: (N, Q, K); boxes: (N, Q, 4); truths, pairs: one an image.
    """
    count = max(sum(len(truth.classes) for truth in truths), 1)
    wanted = torch.zeros_like(logits)
    for image, (truth, (queries, objects)) in enumerate(zip(truths, pairs, strict=True)):
        wanted[image, queries, truth.classes[objects]] = 1
    found = torch.cat([boxes[image, queries] for image, (queries, _) in enumerate(pairs)])
    right = torch.cat([truth.boxes[objects] for truth, (_, objects) in zip(truths, pairs, strict=True)])
    overlap = generalized_box_iou(_corners(found), _corners(right)).diag()
    return {
        "class": weights.classes * focal_loss(logits, wanted) / count,
        "box": weights.l1 * F.l1_loss(found, right, reduction="sum") / count,
        "giou": weights.giou * (1 - overlap).sum() / count,
    }


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sum of the sigmoid focal loss."""
    share = logits.sigmoid()
    right = share * wanted + (1 - share) * (1 - wanted)
    balance = ALPHA * wanted + (1 - ALPHA) * (1 - wanted)
    plain = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (balance * (1 - right) ** GAMMA * plain).sum()


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")
