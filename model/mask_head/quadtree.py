"""The point quadtree on the RoI grid: which places are its nodes, within a budget, and how they become a mask again.

Nodes are the incoherent places, or those of the comparisons in Table 2. Encoding costs the same for every node, but a
place of a coarse level covers four times the area of one a level finer, and a likely, confident instance's boundary is
worth more than a doubtful one's. So nodes are taken by score x incoherence / 4^depth, best first, within each image: an
anytime rule, since a larger budget only adds nodes.

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

REGIONS = ("incoherent", "full", "boundary")
PROPAGATIONS = ("bilinear", "centred", "nearest", "leaves")
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
        for name, kinds in (("region", REGIONS), ("propagation", PROPAGATIONS), ("refine_loss", REFINE_LOSSES)):
            if getattr(self, name) not in kinds:
                raise ValueError(f"MODEL.TRANSFINER.{name.upper()} must be one of {kinds}, got {getattr(self, name)!r}")

    @classmethod
    def from_config(cls, node: CfgNode) -> RefinementSettings:
        """Read the fields from ``cfg.MODEL.TRANSFINER``."""
        values: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            value = node[name.upper()]
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def _check_levels(sizes: tuple[int, ...]) -> None:
    """Check that each level has twice the side of the one before; there may be none."""
    if any(finer != 2 * coarser for coarser, finer in pairwise(sizes)):
        raise ValueError(f"MODEL.TRANSFINER.LEVEL_SIZES must double from level to level, got {sizes}")


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


def nest(regions: list[Tensor]) -> list[Tensor]:
    """Drop places whose parent is not in the region; L bool (R, S, S), coarsest first, each side twice the last."""
    result = [regions[0]]
    for region in regions[1:]:
        result.append(region & double(result[-1]))
    return result


def double(grid: Tensor) -> Tensor:
    """Copy every place of a grid (R, S, S) to its four quadrants: (R, 2S, 2S)."""
    return grid.repeat_interleave(2, 1).repeat_interleave(2, 2)


BOUNDARY_RADIUS = 2  # places around the contour, section 6.1


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
    padded_mask = F.pad(mask[:, None].float(), [BOUNDARY_RADIUS] * 4, mode="replicate")
    share = F.conv2d(padded_mask, disc)[:, 0]
    return (share > 0) & (share < disc.sum())


@dataclass(frozen=True)
class Nodes:
    """Places of one quadtree level, ordered by RoI: each field is an int64 tensor of Q."""

    roi: Tensor
    y: Tensor
    x: Tensor

    def __len__(self) -> int:
        return self.roi.shape[0]

    def of(self, grid: Tensor) -> Tensor:
        """Values of a (R, S, S) grid at the nodes, as (Q,)."""
        return grid[self.roi, self.y, self.x]

    def counts(self, num_rois: int) -> Tensor:
        """Nodes an RoI, as (R,)."""
        return torch.bincount(self.roi, minlength=num_rois)

    def neighbourhood(self) -> Nodes:
        """The 3x3 places around each node, row by row, 9 * Q in all; they may lie outside the grid."""
        step = torch.arange(-1, 2, device=self.roi.device)
        y = self.y[:, None] + step.repeat_interleave(3)
        x = self.x[:, None] + step.repeat(3)
        return Nodes(self.roi.repeat_interleave(9), y.flatten(), x.flatten())

    def select(self, index: Tensor) -> Nodes:
        """The nodes at ``index`` (int64 or bool), in that order."""
        return Nodes(self.roi[index], self.y[index], self.x[index])


def nodes_of(region: Tensor) -> Nodes:
    """The places of a bool (R, S, S) grid that are set, ordered by RoI, then row, then column."""
    return Nodes(*torch.nonzero(region, as_tuple=True))


# (nodes by level, incoherence probabilities by level) -> the nodes to refine
LimitNodes = Callable[[list[Nodes], list[Tensor]], list[Nodes]]


def rois_to_refine(instances: list[Instances], settings: RefinementSettings) -> Tensor:
    """int64 indices into the batch's instances: the first ``test_instance_limit``, those large enough.

    The size is the square root of the box's area, so that a thin long box counts as its features do (FPN, eq. 1).
    """
    classes = torch.cat([image.pred_classes for image in instances])
    indices = torch.arange(min(settings.test_instance_limit or len(classes), len(classes)), device=classes.device)
    if not settings.test_min_box_px:
        return indices
    return indices[_edges_px(instances)[indices] >= settings.test_min_box_px]


def trust_in_refinement(instances: list[Instances], settings: RefinementSettings) -> Tensor:
    """How much the refined mask of each of the batch's instances counts beside the coarse one, (R,) in [0, 1]."""
    edges_px = _edges_px(instances)
    if not settings.test_sure_box_px:
        return torch.ones_like(edges_px)
    return (edges_px / settings.test_sure_box_px).square().clamp(max=1)


def _edges_px(instances: list[Instances]) -> Tensor:
    """Square root of each box's area, (R,)."""
    return torch.cat([image.pred_boxes.area() for image in instances]).sqrt()


def node_limit(instances: list[Instances], roi_indices: Tensor, budget: int) -> LimitNodes | None:
    """Keeps the nodes of these instances within ``budget`` an image; None for no budget (0)."""
    if not budget:
        return None
    scores = torch.cat([image.scores for image in instances])[roi_indices].float()
    numbers = torch.cat([torch.full_like(image.pred_classes, number) for number, image in enumerate(instances)])
    image_of_roi = numbers[roi_indices]
    return lambda levels, incoherence: within_budget(levels, incoherence, scores, image_of_roi, budget)


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
    is_kept = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    is_kept[best_first[rank < budget]] = True
    return [nodes.select(part) for nodes, part in zip(levels, is_kept.split([len(n) for n in levels]), strict=True)]


def _gain(nodes: Nodes, incoherence: list[Tensor], scores: Tensor, depth: int) -> Tensor:
    probability = nodes.of(incoherence[depth]) if incoherence else 1.0
    return scores[nodes.roi] * probability / 4**depth


Permutation = Callable[[int], Tensor]


def sample_nodes(
    levels: list[Nodes], num_rois: int, count: int, minimum: int, permutation: Permutation = torch.randperm
) -> tuple[Tensor, list[Nodes]]:
    """Draw ``count`` nodes an RoI and level for training, with repetition where there are fewer.

    RoIs with fewer than ``minimum`` nodes at any level are left out: too little boundary to learn from.

    Returns:
        roi_indices: int64 (R',) the RoIs that stay.
        samples: L levels of R' * count nodes each, whose ``roi`` still refers to the R original RoIs.
    """
    counts = torch.stack([nodes.counts(num_rois) for nodes in levels])
    roi_indices = torch.nonzero((counts >= max(minimum, 1)).all(0))[:, 0]
    samples = []
    for nodes, level_counts in zip(levels, counts.tolist(), strict=True):
        starts = torch.tensor([0, *level_counts]).cumsum(0).tolist()
        picks = [starts[roi] + _draw(level_counts[roi], count, permutation) for roi in roi_indices.tolist()]
        index = torch.cat(picks) if picks else torch.empty(0, dtype=torch.int64)
        samples.append(nodes.select(index.to(nodes.roi.device)))
    return roi_indices, samples


def _draw(available: int, count: int, permutation: Permutation) -> Tensor:
    order = permutation(available)
    return order.repeat(-(-count // available))[:count]


def propagate(
    coarse: Tensor, levels: list[Nodes], values: list[Tensor], sizes: list[int], method: str = "bilinear"
) -> Tensor:
    """Write refined probabilities level by level from the root to the leaves.

    The root takes the refined values at its nodes; every finer level starts as the upsampling of the one above and
    is overwritten at its own nodes.

    Args:
        coarse: (R, S0, S0) probabilities. Not changed.
        levels, values: L levels of nodes and their refined probabilities (Q,).
        method: ``"nearest"`` copies each place to its four quadrants (figure 8); ``"bilinear"`` (with align_corners)
            is the released code's, which moves places by up to half a finer one; ``"centred"`` (without) moves none;
            ``"leaves"`` corrects the finest level only (table 8 without propagation).

    Returns:
        (R, S_last, S_last) probabilities.
    """
    if method == "leaves":
        size = sizes[-1]
        mask = F.interpolate(coarse[:, None], (size, size), mode="bilinear")[:, 0]
        return _write(mask, levels[-1], values[-1])
    mask = coarse.clone()
    for depth, (nodes, value, size) in enumerate(zip(levels, values, sizes, strict=True)):
        if depth > 0 and method == "nearest":
            mask = double(mask)
        elif depth > 0:
            corners = method == "bilinear"
            mask = F.interpolate(mask[:, None], (size, size), mode="bilinear", align_corners=corners)[:, 0]
        mask = _write(mask, nodes, value)
    return mask


def _write(mask: Tensor, nodes: Nodes, value: Tensor) -> Tensor:
    return mask.index_put((nodes.roi, nodes.y, nodes.x), value.to(mask.dtype))


def boundary_uncertainty(levels: list[Nodes], values: list[Tensor], num_rois: int) -> Tensor:
    """How undecided an instance's outline is, (R,) in [0, 1]: the mean of 4p(1 - p) over its finest nodes.

    The finest level counts, being the boundary itself; an instance without nodes there falls back to the next one,
    and one without any node is certain (0).
    """
    result = torch.zeros(num_rois, device=values[0].device)
    for nodes, value in zip(levels, values, strict=True):
        count = nodes.counts(num_rois)
        total = result.new_zeros(num_rois).index_add(0, nodes.roi, 4 * value * (1 - value))
        result = torch.where(count > 0, total / count.clamp(min=1), result)
    return result
