"""Vertices, fidelity and time of several ways to outline the same masks, in one run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from backend.outline_methods import METHODS, Method
from integration.deviation import deviation_px
from integration.polygons import Polygon, exact_polygons, polygons_to_mask


@dataclass(frozen=True, slots=True)
class MethodFigures:
    """One method on a set of masks.

    Attributes:
        method: its label.
        vertices: of all polygons together.
        median_ms: processor time a mask, the best of the repeats: it does not count other people's work.
        mean_ms: likewise.
        slowest_ms: likewise.
        median_wall_ms: time on the clock a mask, the best of the repeats.
        hausdorff_px: two-way distance to the exact contour, the worst of all masks.
        mean_iou: overlap of a mask with what its polygons fill.
    """

    method: str
    vertices: int
    median_ms: float
    mean_ms: float
    slowest_ms: float
    median_wall_ms: float
    hausdorff_px: float
    mean_iou: float


def compare(masks_hw: Sequence[np.ndarray], tolerance_px: float, repeats: int) -> list[MethodFigures]:
    """Run every method of `METHODS` on every mask; masks are bool, H x W."""
    exact = [exact_polygons(mask_hw) for mask_hw in masks_hw]
    return [
        _figures(label, method, masks_hw, exact, tolerance_px, repeats) for label, method in METHODS.items()
    ]


def _figures(
    label: str,
    method: Method,
    masks_hw: Sequence[np.ndarray],
    exact: Sequence[list[Polygon]],
    tolerance_px: float,
    repeats: int,
) -> MethodFigures:
    outlines, times_ms, walls_ms = [], [], []
    for mask_hw in masks_hw:
        runs = [_timed(method, mask_hw, tolerance_px) for _ in range(repeats)]
        outlines.append(runs[0].polygons)
        times_ms.append(min(run.processor_ms for run in runs))
        walls_ms.append(min(run.wall_ms for run in runs))
    overlaps = [overlap(mask_hw, found) for mask_hw, found in zip(masks_hw, outlines, strict=True)]
    return MethodFigures(
        method=label,
        vertices=sum(polygon.vertex_count for found in outlines for polygon in found),
        median_ms=float(np.median(times_ms)),
        mean_ms=float(np.mean(times_ms)),
        slowest_ms=max(times_ms),
        median_wall_ms=float(np.median(walls_ms)),
        hausdorff_px=max(deviation_px(*pair) for pair in zip(outlines, exact, strict=True)),
        mean_iou=float(np.mean(overlaps)),
    )


def overlap(mask_hw: np.ndarray, polygons: Sequence[Polygon]) -> float:
    """IoU of a mask with what the polygons fill; 1 if both are empty."""
    filled = polygons_to_mask(polygons, *mask_hw.shape)
    union = int((filled | mask_hw).sum())
    return int((filled & mask_hw).sum()) / union if union else 1.0


class _Run(NamedTuple):
    polygons: list[Polygon]
    processor_ms: float
    wall_ms: float


def _timed(method: Method, mask_hw: np.ndarray, tolerance_px: float) -> _Run:
    wall_s, processor_s = time.perf_counter(), time.process_time()
    found = method(mask_hw, tolerance_px)
    processor_s, wall_s = time.process_time() - processor_s, time.perf_counter() - wall_s
    return _Run(found, processor_s * 1000, wall_s * 1000)
