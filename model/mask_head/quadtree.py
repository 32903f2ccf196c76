"""The point quadtree on the RoI grid: its nodes, their order in a sequence, and the way back to a mask.

Shape shorthand: R RoIs, L levels, S side of a level, Q nodes of a level, T tokens of all sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Permutation = Callable[[int], Tensor]


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


def nest(regions: list[Tensor]) -> list[Tensor]:
    """Drop places whose parent is not in the region; L bool (R, S, S), coarsest first, each side twice the last."""
    result = [regions[0]]
    for region in regions[1:]:
        result.append(region & double(result[-1]))
    return result


def double(grid: Tensor) -> Tensor:
    """(R, S, S) to (R, 2S, 2S): every place copied to its four quadrants."""
    return grid.repeat_interleave(2, 1).repeat_interleave(2, 2)


def sample_nodes(
    levels: list[Nodes], num_rois: int, count: int, minimum: int, permutation: Permutation = torch.randperm
) -> tuple[Tensor, list[Nodes]]:
    """Draw ``count`` nodes an RoI and level for training, with repetition where there are fewer.

    RoIs with fewer than ``minimum`` nodes at any level are left out: too little boundary to learn from.

    Returns:
        kept: int64 (R',) the RoIs that stay.
        sampled: L levels of R' * count nodes each, whose ``roi`` still refers to the R original RoIs.
    """
    counts = torch.stack([nodes.counts(num_rois) for nodes in levels])
    kept = torch.nonzero((counts >= max(minimum, 1)).all(0))[:, 0]
    sampled = []
    for nodes, level_counts in zip(levels, counts.tolist(), strict=True):
        starts = torch.tensor([0, *level_counts]).cumsum(0).tolist()
        picks = [starts[r] + _draw(level_counts[r], count, permutation) for r in kept.tolist()]
        index = torch.cat(picks) if picks else torch.empty(0, dtype=torch.int64)
        sampled.append(nodes.select(index.to(nodes.roi.device)))
    return kept, sampled


def _draw(available: int, count: int, permutation: Permutation) -> Tensor:
    order = permutation(available)
    return order.repeat(-(-count // available))[:count]


def sequence_order(roi_of_part: list[Tensor]) -> Tensor:
    """Permutation that turns parts (reference points, then each level) into one packed run of tokens an RoI.

    Within an RoI the parts keep their order and the places theirs, so sequences equal the released code's.
    """
    return torch.argsort(torch.cat(roi_of_part), stable=True)


PROPAGATIONS = ("bilinear", "centred", "nearest", "leaves")


def propagate(
    coarse: Tensor, levels: list[Nodes], values: list[Tensor], sizes: list[int], how: str = "bilinear"
) -> Tensor:
    """Write refined probabilities level by level from the root to the leaves.

    The root takes the refined values at its nodes; every finer level starts as the upsampling of the one above and
    is overwritten at its own nodes.

    Args:
        coarse: (R, S0, S0) probabilities. Not changed.
        levels, values: L levels of nodes and their refined probabilities (Q,).
        how: ``"nearest"`` copies each place to its four quadrants (figure 8); ``"bilinear"`` (with align_corners)
            is the released code's, which moves places by up to half a finer one; ``"centred"`` (without) moves none;
            ``"leaves"`` corrects the finest level only (table 8 without propagation).

    Returns:
        (R, S_last, S_last) probabilities.
    """
    if how == "leaves":
        size = sizes[-1]
        mask = F.interpolate(coarse[:, None], (size, size), mode="bilinear")[:, 0]
        return _write(mask, levels[-1], values[-1])
    mask = coarse.clone()
    for depth, (nodes, value, size) in enumerate(zip(levels, values, sizes, strict=True)):
        if depth > 0 and how == "nearest":
            mask = double(mask)
        elif depth > 0:
            corners = how == "bilinear"
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
