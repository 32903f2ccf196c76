"""Ways to outline a mask, for comparison: what most tools do, what careful ones do, and ours.

Vertices, fidelity and time of several ways to outline the same masks, in one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import shapely

from backend.errors import ServiceError
from integration.polygons.convert import Polygon, exact_polygons, mask_to_polygons, polygons_to_mask
from integration.polygons.hausdorff import deviation_px

Method = Callable[[np.ndarray, float], list[Polygon]]


def fewest_vertices(mask_hw: np.ndarray, tolerance_px: float) -> list[Polygon]:
    """Fewest vertices within the tolerance of the exact contour."""
    return mask_to_polygons(mask_hw, tolerance_px=tolerance_px)


def douglas_peucker(mask_hw: np.ndarray, tolerance_px: float) -> list[Polygon]:
    """shapely's topology-preserving Douglas-Peucker on the same exact contour."""
    shapes = [
        shapely.Polygon(polygon.exterior, polygon.holes).simplify(tolerance_px, preserve_topology=True)
        for polygon in exact_polygons(mask_hw)
    ]
    return [
        Polygon(_open(shape.exterior), tuple(_open(hole) for hole in shape.interiors), tolerance_px) for shape in shapes
    ]


def opencv(mask_hw: np.ndarray, tolerance_px: float) -> list[Polygon]:
    """OpenCV's contours, which run through pixel centres, and its Douglas-Peucker; tolerance 0 keeps all corners."""
    cv2 = _opencv()
    contours, tree = cv2.findContours(mask_hw.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [cv2.approxPolyDP(ring, tolerance_px, True)[:, 0].astype(np.float64) for ring in contours]
    parents = [-1] * len(rings) if tree is None else tree[0][:, 3].tolist()
    return [
        Polygon(ring, tuple(hole for hole, p in zip(rings, parents, strict=True) if p == index), tolerance_px)
        for index, (ring, parent) in enumerate(zip(rings, parents, strict=True))
        if parent < 0
    ]


def _open(ring: shapely.LinearRing) -> np.ndarray:
    return shapely.get_coordinates(ring)[:-1]


def _opencv():  # type: ignore[no-untyped-def]
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ServiceError(
            "The comparison needs OpenCV, which is not installed.", "pip install opencv-python-headless"
        ) from error
    return cv2


# Label of each method in tables and pictures.
METHODS: dict[str, Method] = {
    "OpenCV contour + Douglas-Peucker": opencv,
    "exact contour + Douglas-Peucker": douglas_peucker,
    "transfiner": fewest_vertices,
}


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


def compare_outline_methods(masks_hw: Sequence[np.ndarray], tolerance_px: float, repeats: int) -> list[MethodFigures]:
    """Run every method of `METHODS` on every mask; masks are bool, H x W."""
    exact = [exact_polygons(mask_hw) for mask_hw in masks_hw]
    return [_figures(label, method, masks_hw, exact, tolerance_px, repeats) for label, method in METHODS.items()]


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
    overlaps = [overlap(mask_hw, outline) for mask_hw, outline in zip(masks_hw, outlines, strict=True)]
    return MethodFigures(
        method=label,
        vertices=sum(polygon.vertex_count for outline in outlines for polygon in outline),
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
    outline = method(mask_hw, tolerance_px)
    processor_s, wall_s = time.process_time() - processor_s, time.perf_counter() - wall_s
    return _Run(outline, processor_s * 1000, wall_s * 1000)
