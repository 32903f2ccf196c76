"""What is left unrefined in inference: small instances, and nodes beyond a budget, spent where masks change most.

Encoding costs the same for every node, but a place of a coarse level covers four times the area of one a level finer,
and a likely, confident instance's boundary is worth more than a doubtful one's. So nodes are taken by
score x incoherence / 4^depth, best first, within each image: an anytime rule, since a larger budget only adds nodes.

Shape shorthand: R RoIs, L levels, S side of a level, Q nodes of a level.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.structures import Instances
from torch import Tensor

from model.quadtree import Nodes
from model.refinement_settings import RefinementSettings

# (nodes by level, incoherence probabilities by level) -> the nodes to refine
LimitNodes = Callable[[list[Nodes], list[Tensor]], list[Nodes]]


def rois_to_refine(instances: list[Instances], settings: RefinementSettings) -> Tensor:
    """int64 indices into the batch's instances: the first ``test_instance_limit``, those large enough.

    The size is the square root of the box's area, so that a thin long box counts as its features do (FPN, eq. 1).
    """
    classes = torch.cat([image.pred_classes for image in instances])
    first = torch.arange(min(settings.test_instance_limit or len(classes), len(classes)), device=classes.device)
    if not settings.test_min_box_px:
        return first
    edges_px = torch.cat([image.pred_boxes.area() for image in instances]).sqrt()
    return first[edges_px[first] >= settings.test_min_box_px]


def node_limit(instances: list[Instances], chosen: Tensor, budget: int) -> LimitNodes | None:
    """Keeps the nodes of the ``chosen`` instances within ``budget`` an image; None where there is none (0)."""
    if not budget:
        return None
    scores = torch.cat([image.scores for image in instances])[chosen].float()
    images = torch.cat([torch.full_like(i.pred_classes, k) for k, i in enumerate(instances)])[chosen]
    return lambda levels, detected: within_budget(levels, detected, scores, images, budget)


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
    return [nodes.select(part) for nodes, part in zip(levels, kept.split([len(n) for n in levels]), strict=True)]


def _gain(nodes: Nodes, incoherence: list[Tensor], scores: Tensor, depth: int) -> Tensor:
    likely = nodes.of(incoherence[depth]) if incoherence else 1.0
    return scores[nodes.roi] * likely / 4**depth
