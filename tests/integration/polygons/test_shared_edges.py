"""Instances that touch share one edge after simplification."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from integration.polygons.convert import outline_mask, polygons_to_mask
from integration.polygons.shared_edges import outline_masks


def quilt(seed: int, parts: int) -> list[np.ndarray]:
    """Masks that tile part of an image with curved borders."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:36, :40]
    seeds = random.uniform(0, 38, (parts + 1, 2))
    wobble = [3 * np.sin(x / 4 + a) + 3 * np.cos(y / 3 + b) for a, b in random.uniform(0, 6, (parts + 1, 2))]
    distance = [np.hypot(y - cy, x - cx) + w for (cy, cx), w in zip(seeds, wobble, strict=True)]
    label = np.argmin(distance, axis=0)
    return [label == number for number in range(1, parts + 1)]


@pytest.mark.parametrize("tolerance_px", [0.0, 0.75, 1.5, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_neighbours_neither_overlap_nor_part(seed: int, tolerance_px: float) -> None:
    masks = quilt(seed, 4)
    outlines = outline_masks(masks, tolerance_px=tolerance_px)
    shapes = [shapely.MultiPolygon([shapely.Polygon(p.exterior, p.holes) for p in outline]) for outline in outlines]
    for shape, outline, mask in zip(shapes, outlines, masks, strict=True):
        assert shape.is_valid
        alone = outline_mask(mask)
        assert [len(p.holes) for p in outline] == [len(p.holes) for p in alone]
        if tolerance_px == 0:
            assert np.array_equal(polygons_to_mask(outline, *mask.shape), mask)
    for number, shape in enumerate(shapes):
        for other in shapes[:number]:
            assert shape.intersection(other).area == pytest.approx(0, abs=1e-6)


def test_the_shared_edge_has_the_same_vertices_on_both_sides() -> None:
    y, x = np.mgrid[:30, :30]
    border = 15 + 3 * np.sin(y / 4)
    left, right = (x < border) & (x > 3), (x >= border) & (x < 27)
    (a,), (b,) = outline_masks([left, right], tolerance_px=1.0)
    shared = set(map(tuple, a.exterior.tolist())) & set(map(tuple, b.exterior.tolist()))
    assert len(shared) >= 4
    gap = shapely.Polygon(a.exterior).union(shapely.Polygon(b.exterior))
    assert gap.geom_type == "Polygon"
    assert not gap.interiors


def test_an_object_inside_another_shares_its_whole_outline() -> None:
    y, x = np.mgrid[:40, :40]
    inner = np.hypot(y - 20, x - 20) < 9
    outer = (np.hypot(y - 20, x - 20) < 17) & ~inner
    (disc,), (ring,) = outline_masks([inner, outer], tolerance_px=1.0)
    assert set(map(tuple, disc.exterior.tolist())) == set(map(tuple, ring.holes[0].tolist()))


def test_overlapping_masks_keep_their_own_edges() -> None:
    a, b = np.zeros((12, 12), dtype=np.bool_), np.zeros((12, 12), dtype=np.bool_)
    a[2:8, 2:8], b[5:11, 5:11] = True, True
    for outlined, mask in zip(outline_masks([a, b]), (a, b), strict=True):
        assert np.array_equal(polygons_to_mask(outlined, 12, 12), mask)


def test_no_masks_no_polygons() -> None:
    assert outline_masks([]) == []
