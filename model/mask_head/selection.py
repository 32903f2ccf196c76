"""Which places of the RoI grid are refined: incoherent ones or those of the comparisons in Table 2, within a budget.

Encoding costs the same for every node, but a place of a coarse level covers four times the area of one a level finer,
and a likely, confident instance's boundary is worth more than a doubtful one's. So nodes are taken by
score x incoherence / 4^depth, best first, within each image: an anytime rule, since a larger budget only adds nodes.

Shape shorthand: R RoIs, L levels coarse to fine, S the side of a level, Q nodes of a level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from model.mask_head.quadtree import PROPAGATIONS, Nodes, nest

REGIONS = ("incoherent", "full", "boundary")
BOUNDARY_RADIUS = 2  # places around the contour, section 6.1


def select_incoherent_regions(
    incoherence: list[Tensor], thresholds: tuple[float, ...], *, nested: bool = False, dilate_finest: bool = False
) -> list[Tensor]:
    """Places whose incoherence reaches their level's threshold, L bool (R, S, S).

    Args:
        incoherence: L probabilities (R, S, S), coarsest first, each side twice the last.
        nested: subdivide nodes only: a place needs a node as its parent (section 3.2).
        dilate_finest: grow the finest level's region by one place in every direction.
    """
    regions = [grid >= threshold for grid, threshold in zip(incoherence, thresholds, strict=True)]
    if nested:
        regions = nest(regions)
    if dilate_finest:
        finest = F.max_pool2d(regions[-1][:, None].float(), 3, stride=1, padding=1)[:, 0] > 0
        regions = [*regions[:-1], finest]
    return regions


def full_regions(rois: int, sizes: list[int], device: torch.device) -> list[Tensor]:
    """Every place of every level."""
    return [torch.ones((rois, size, size), dtype=torch.bool, device=device) for size in sizes]


def boundary_regions(coarse: list[Tensor]) -> list[Tensor]:
    """Places within two places (Euclidean) of the coarse mask's contour on each level.

    Args:
        coarse: L coarse mask probabilities (R, S, S).
    """
    return [_near_contour(grid >= 0.5) for grid in coarse]


def _near_contour(mask: Tensor) -> Tensor:
    reach = torch.arange(-BOUNDARY_RADIUS, BOUNDARY_RADIUS + 1, device=mask.device)
    disc = (reach[:, None] ** 2 + reach**2 <= BOUNDARY_RADIUS**2).float()[None, None]
    around = F.pad(mask[:, None].float(), [BOUNDARY_RADIUS] * 4, mode="replicate")
    share = F.conv2d(around, disc)[:, 0]
    return (share > 0) & (share < disc.sum())


#: How refined probabilities are compared with labels.
REFINE_LOSSES = ("l1", "cross_entropy")


@dataclass(frozen=True)
class RefinementSettings:
    """The fields are the lower-cased keys of ``MODEL.TRANSFINER``; config.py says what each means.

    Raises:
        ValueError: a value that is not one of the known ones, or levels that are no quadtree.
    """

    level_sizes: tuple[int, ...] = (28, 56, 112)
    thresholds_train: tuple[float, ...] = (0.125, 0.5, 0.5)
    thresholds_test: tuple[float, ...] = (1e-6, 0.125, 0.8)
    nested: bool = False
    region: str = "incoherent"
    reference_points: bool = True
    joint_levels: bool = True
    propagation: str = "bilinear"
    samples_per_level: int = 150
    min_nodes_per_level: int = 10
    train_instance_limit: int = 30
    test_instance_limit: int = 0
    test_min_box_px: float = 0.0
    test_sure_box_px: float = 0.0
    test_sequence_nodes: int = 0
    test_node_budget: int = 0
    dilate_and_blur: bool = False
    keep_coarse: bool = False
    refine_loss: str = "l1"

    def __post_init__(self) -> None:
        _check_levels(self.level_sizes)
        for name in ("thresholds_train", "thresholds_test"):
            if len(getattr(self, name)) != len(self.level_sizes):
                raise ValueError(
                    f"MODEL.TRANSFINER.{name.upper()} needs a value for each of LEVEL_SIZES {self.level_sizes}, "
                    f"got {getattr(self, name)}"
                )
        for name, known in (("region", REGIONS), ("propagation", PROPAGATIONS), ("refine_loss", REFINE_LOSSES)):
            if getattr(self, name) not in known:
                raise ValueError(f"MODEL.TRANSFINER.{name.upper()} must be one of {known}, got {getattr(self, name)!r}")

    @classmethod
    def from_config(cls, node: CfgNode) -> RefinementSettings:
        """Read the fields from ``cfg.MODEL.TRANSFINER``."""
        values: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            value = node[name.upper()]
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def _check_levels(sizes: tuple[int, ...]) -> None:
    """Depth 0 has no level; else each is twice the one before."""
    if any(finer != 2 * coarser for coarser, finer in pairwise(sizes)):
        raise ValueError(f"MODEL.TRANSFINER.LEVEL_SIZES must double from level to level, got {sizes}")


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
    return first[_edges_px(instances)[first] >= settings.test_min_box_px]


def trust_in_refinement(instances: list[Instances], settings: RefinementSettings) -> Tensor:
    """How much the refined mask of each of the batch's instances counts beside the coarse one, (R,) in [0, 1]."""
    edges_px = _edges_px(instances)
    if not settings.test_sure_box_px:
        return torch.ones_like(edges_px)
    return (edges_px / settings.test_sure_box_px).square().clamp(max=1)


def _edges_px(instances: list[Instances]) -> Tensor:
    """Square root of each box's area, (R,)."""
    return torch.cat([image.pred_boxes.area() for image in instances]).sqrt()


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
