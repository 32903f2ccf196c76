"""Ways to outline a mask, for comparison: what most tools do, what careful ones do, and ours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import shapely

from backend.errors import ServiceError
from integration.polygons import Polygon, exact_polygons, mask_to_polygons

Method = Callable[[np.ndarray, float], list[Polygon]]


def ours(mask_hw: np.ndarray, tolerance_px: float) -> list[Polygon]:
    """Fewest vertices within the tolerance of the exact contour."""
    return mask_to_polygons(mask_hw, tolerance_px=tolerance_px)


def douglas_peucker(mask_hw: np.ndarray, tolerance_px: float) -> list[Polygon]:
    """shapely's topology-preserving Douglas-Peucker on the same exact contour."""
    shapes = [
        shapely.Polygon(polygon.exterior, polygon.holes).simplify(tolerance_px, preserve_topology=True)
        for polygon in exact_polygons(mask_hw)
    ]
    return [
        Polygon(_open(shape.exterior), tuple(_open(hole) for hole in shape.interiors), tolerance_px)
        for shape in shapes
    ]


def opencv(mask_hw: np.ndarray, tolerance_px: float) -> list[Polygon]:
    """OpenCV's contours, which run through pixel centres, and its Douglas-Peucker; tolerance 0 keeps all corners."""
    cv2 = _opencv()
    found, tree = cv2.findContours(mask_hw.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [cv2.approxPolyDP(ring, tolerance_px, True)[:, 0].astype(np.float64) for ring in found]
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
    "transfiner": ours,
}
