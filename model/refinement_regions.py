"""Which places of the RoI grid are refined: incoherent ones, or those of the comparisons in Table 2.

Shape shorthand: R RoIs, L levels coarse to fine, S the side of a level.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.quadtree import nest

REGIONS = ("incoherent", "full", "boundary")
BOUNDARY_RADIUS = 2  # places around the contour, section 6.1


def incoherent_regions(
    incoherence: list[Tensor],
    thresholds: tuple[float, ...],
    *,
    nested: bool = False,
    dilate_finest: bool = False,
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
