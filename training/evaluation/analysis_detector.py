"""Table 3: how well incoherent regions are detected, place by place, a level at a time and pooled.

The paper's "accuracy" is not defined there, so precision, recall, pixel accuracy and F1 are all given. What is
counted as detected is what becomes a node of the quadtree; what should be is equation 1 within its parents' coverage.

Shape shorthand: R RoIs, S side of a level, L levels coarse to fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.incoherence.paper import incoherent_regions
from model.quadtree import Nodes


@dataclass(frozen=True)
class Confusion:
    """Counted places."""

    hit: int = 0
    false_alarm: int = 0
    miss: int = 0
    right_rejection: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(
            self.hit + other.hit,
            self.false_alarm + other.false_alarm,
            self.miss + other.miss,
            self.right_rejection + other.right_rejection,
        )

    def figures(self) -> dict[str, float]:
        """precision, recall, accuracy and f1 as fractions; NaN where nothing was counted."""
        everything = self.hit + self.false_alarm + self.miss + self.right_rejection
        return {
            "precision": _ratio(self.hit, self.hit + self.false_alarm),
            "recall": _ratio(self.hit, self.hit + self.miss),
            "accuracy": _ratio(self.hit + self.right_rejection, everything),
            "f1": _ratio(2 * self.hit, 2 * self.hit + self.false_alarm + self.miss),
        }


def compare_regions(found: Tensor, wanted: Tensor) -> Confusion:
    """Count bool (R, S, S) regions against the right ones."""
    return Confusion(
        int((found & wanted).sum()),
        int((found & ~wanted).sum()),
        int((~found & wanted).sum()),
        int((~found & ~wanted).sum()),
    )


def regions_of_nodes(levels: Sequence[Nodes], rois: int, sizes: Sequence[int]) -> list[Tensor]:
    """Nodes drawn on their levels' grids, L bool (R, S, S)."""
    grids = []
    for nodes, size in zip(levels, sizes, strict=True):
        grid = torch.zeros((rois, size, size), dtype=torch.bool)
        grid[nodes.roi.cpu(), nodes.y.cpu(), nodes.x.cpu()] = True
        grids.append(grid)
    return grids


def wanted_regions(truth: Tensor, levels: int) -> list[Tensor]:
    """Equation 1 within its parents' coverage, from truth of twice the finest level's side; L bool, coarsest first."""
    return incoherent_regions(truth, levels, nested=True)


def detector_figures(levels: Sequence[Confusion], sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    """Figures of every level, named by its side, and of all their places together as ``pooled``."""
    named = {str(size): level.figures() for size, level in zip(sizes, levels, strict=True)}
    return named | {"pooled": sum(levels, Confusion()).figures()}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
