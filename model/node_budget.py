"""Spending a limited number of nodes where they change the masks most.

Encoding costs the same for every node, but a place of a coarse level covers four times the area of one a level finer,
and a likely, confident instance's boundary is worth more than a doubtful one's. So nodes are taken by
score x incoherence / 4^depth, best first, within each image: an anytime rule, since a larger budget only adds nodes.

Shape shorthand: R RoIs, L levels, S side of a level, Q nodes of a level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.quadtree import Nodes


def within_budget(
    levels: list[Nodes], incoherence: list[Tensor], scores: Tensor, image_of_roi: Tensor, budget: int
) -> list[Nodes]:
    """The best ``budget`` nodes of every image, in their old order.

    Args:
        levels: L levels of nodes over R RoIs, coarsest first.
        incoherence: L grids (R, S, S) of probabilities; without any (regions that are not detected) all count 1.
        scores: (R,) detection scores. image_of_roi: int64 (R,) the image of each RoI in the batch.
        budget: most nodes an image; 0 for no limit.

    Returns:
        L levels; what else is in the batch changes nothing.
    """
    if not budget:
        return levels
    gains = [_gain(nodes, incoherence, scores, depth) for depth, nodes in enumerate(levels)]
    images = torch.cat([image_of_roi[nodes.roi] for nodes in levels])
    best_first = torch.argsort(torch.cat(gains), descending=True, stable=True)
    best_first = best_first[torch.argsort(images[best_first], stable=True)]
    counts = torch.bincount(images)
    rank = torch.arange(len(images), device=images.device) - (counts.cumsum(0) - counts)[images[best_first]]
    kept = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    kept[best_first[rank < budget]] = True
    return [
        nodes.select(part) for nodes, part in zip(levels, kept.split([len(n) for n in levels]), strict=True)
    ]


def _gain(nodes: Nodes, incoherence: list[Tensor], scores: Tensor, depth: int) -> Tensor:
    likely = nodes.of(incoherence[depth]) if incoherence else 1.0
    return scores[nodes.roi] * likely / 4**depth
