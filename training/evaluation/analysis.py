"""Table 1: how much of a coarse mask's error lies in incoherent regions, and what perfect labels there would bring.

Reading (the paper's 14 / 43 / 56 % fit none exactly): the box under study is the detection's; the truth is cut to it
on an S x S grid, S = 224; the regions are equation 1's on three halvings of that truth, as they are (not nested), and
the region U of an object is their union on the grid. E is where the coarse mask is wrong.

Shape shorthand: R objects, S side of the grid, L halvings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.incoherence.paper import incoherent_regions

GRID_SIDE = 224
HALVINGS = 3


def incoherent_union(masks: Tensor, halvings: int = HALVINGS) -> Tensor:
    """Places of a mask's grid in an incoherent region of any level, bool (R, S, S).

    Raises:
        ValueError: the side cannot be halved ``halvings`` times.
    """
    union = torch.zeros_like(masks, dtype=torch.bool)
    if not len(masks):
        return union
    for region in incoherent_regions(masks, halvings, nested=False):
        times = masks.shape[-1] // region.shape[-1]
        union |= region.repeat_interleave(times, 1).repeat_interleave(times, 2)
    return union


def fill_with_truth(coarse: Tensor, truth: Tensor, halvings: int = HALVINGS) -> Tensor:
    """The coarse masks with the truth inside the incoherent regions: what AP_GT is measured on. Bool (R, S, S)."""
    return torch.where(incoherent_union(truth, halvings), truth, coarse)


@dataclass(frozen=True)
class RegionCounts:
    """Pixels of R objects, int64 (R,) each.

    Attributes:
        places: of the grid; region: in U; errors: where the coarse mask is wrong; caught: errors in U.
    """

    places: Tensor
    region: Tensor
    errors: Tensor
    caught: Tensor

    def __len__(self) -> int:
        return len(self.region)


def region_counts(coarse: Tensor, truth: Tensor, halvings: int = HALVINGS) -> RegionCounts:
    """Count regions and errors of bool (R, S, S) masks."""
    union = incoherent_union(truth, halvings)
    wrong = coarse != truth
    places = torch.full((len(truth),), truth[0].numel() if len(truth) else 0, dtype=torch.int64)
    return RegionCounts(places, union.flatten(1).sum(1), wrong.flatten(1).sum(1), (wrong & union).flatten(1).sum(1))


def join_counts(parts: list[RegionCounts]) -> RegionCounts:
    """Objects of several images as one."""
    fields = ("places", "region", "errors", "caught")
    empty = torch.zeros(0, dtype=torch.int64)
    return RegionCounts(*(torch.cat([empty, *(getattr(part, name) for part in parts)]) for name in fields))


def region_properties(counts: RegionCounts) -> dict[str, float]:
    """Table 1's first three columns as fractions: the mean over objects, and pooled over all pixels.

    An object without any error has no recall, one without any region no accuracy; they are left out of those means.
    NaN where nothing is left.
    """
    region, errors, caught = counts.region.double(), counts.errors.double(), counts.caught.double()
    some_error, some_region = errors > 0, region > 0
    return {
        "percent": _mean(region / counts.places),
        "recall_err": _mean((caught / errors)[some_error]),
        "accuracy": _mean((1 - caught / region)[some_region]),
        "percent_pooled": _share(region, counts.places.double()),
        "recall_err_pooled": _share(caught, errors),
        "accuracy_pooled": 1 - _share(caught, region),
        "objects": float(len(counts)),
    }


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _share(part: Tensor, whole: Tensor) -> float:
    total = float(whole.sum())
    return float(part.sum()) / total if total else float("nan")
