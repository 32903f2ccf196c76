"""Smooth outlines: exactly the mask at tolerance 0, certified above it; parts joined and split."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from integration.polygons.contours import Polygon, exact_polygons, level_set_outline, sample_patch
from integration.polygons.convert import (
    CrumbRule,
    outline_mask,
    polygons_to_mask,
    reach_border,
    remove_crumbs,
    smooth_outline,
)
from integration.polygons.joining import join_polygons, split_ring
from tests.integration.polygons.hausdorff import deviation_px

masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14)))
patches = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(0, 1, width=32))
boxes = st.tuples(st.floats(-4, 6), st.floats(-4, 6), st.floats(7, 18), st.floats(7, 18))


def shape_of(polygons: list[Polygon]) -> shapely.MultiPolygon:
    return shapely.MultiPolygon([shapely.Polygon(polygon.exterior, polygon.holes) for polygon in polygons])


@given(masks, patches, boxes, st.integers(0, 2))
def test_any_probabilities_give_back_exactly_the_mask(
    mask_hw: np.ndarray, values: np.ndarray, box: tuple[float, float, float, float], border_px: int
) -> None:
    for patch in (None, (values, box)):
        polygons = level_set_outline(mask_hw, patch, border_px=border_px)
        assert np.array_equal(polygons_to_mask(polygons, *mask_hw.shape), mask_hw)
        assert shapely.is_valid(shape_of(polygons))
        assert len(polygons) == len(exact_polygons(mask_hw))
        assert all(polygon.area_px > 0 for polygon in polygons)


@given(masks, patches, boxes, st.floats(0.1, 3))
def test_simplified_outlines_keep_the_certified_tolerance(
    mask_hw: np.ndarray, values: np.ndarray, box: tuple[float, float, float, float], tolerance_px: float
) -> None:
    exact = level_set_outline(mask_hw, (values, box))
    simple = smooth_outline(mask_hw, (values, box), tolerance_px=tolerance_px)
    assert shapely.is_valid(shape_of(simple))
    assert deviation_px(simple, exact, step_px=0.1) <= tolerance_px + 1e-6


def test_patches_are_sampled_as_detectron2_pastes_them() -> None:
    torch = pytest.importorskip("torch")
    layers = pytest.importorskip("detectron2.layers")
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.random((28, 28), dtype=np.float32)
        corners = np.sort(rng.random((2, 2)) * [90, 60], axis=0)
        box = (*corners[0].tolist(), *corners[1].tolist())
        pasted = layers.paste_masks_in_image(torch.tensor(values)[None], torch.tensor([box]), (60, 90), -1)[0]
        sampled = sample_patch(values, box, np.arange(60) + 0.5, np.arange(90) + 0.5)
        # With a negative threshold detectron2 gives probabilities * 255 as bytes.
        assert np.abs(pasted.numpy().astype(float) / 255 - sampled).max() < 0.01


def test_straight_edges_are_straight_and_cost_fewer_vertices() -> None:
    y, x = np.mgrid[:200, :200] + 0.5
    angle = np.deg2rad(17)
    along = (x - 100) * np.cos(angle) + (y - 100) * np.sin(angle)
    across = (y - 100) * np.cos(angle) - (x - 100) * np.sin(angle)
    signed_px = np.minimum(70 - np.abs(along), 20 - np.abs(across))
    probability = np.clip(0.5 + signed_px / 4, 0, 1)
    mask_hw = probability >= 0.5
    patch = (probability, (0.0, 0.0, 200.0, 200.0))
    (smooth,) = smooth_outline(mask_hw, patch, tolerance_px=0.5)
    (stairs,) = outline_mask(mask_hw, tolerance_px=0.5)
    assert len(smooth.exterior) <= 8 < len(stairs.exterior)


@pytest.mark.parametrize("side", range(4))
def test_outlines_of_objects_at_the_border_reach_it(side: int) -> None:
    mask_hw = np.zeros((30, 30), dtype=bool)
    mask_hw[:12, 8:20] = True
    mask_hw = np.rot90(mask_hw, side).copy()
    (polygon,) = smooth_outline(mask_hw, tolerance_px=0.5)
    low, high = polygon.exterior.min(axis=0), polygon.exterior.max(axis=0)
    assert [low[1] == 0, low[0] == 0, high[1] == 30, high[0] == 30][side]


@pytest.mark.parametrize("budget", [10, 14, 30])
def test_a_budget_counts_all_parts_and_their_cuts(budget: int) -> None:
    y, x = np.mgrid[:60, :120]
    mask_hw = (np.hypot(y - 30, x - 30) < 25) | (np.hypot(y - 30, x - 90) < 20)
    polygons = smooth_outline(mask_hw, max_vertices=budget)
    assert len(join_polygons(polygons)) <= budget


@given(masks, patches, boxes)
def test_joined_parts_are_the_mask_and_come_apart_again(
    mask_hw: np.ndarray, values: np.ndarray, box: tuple[float, float, float, float]
) -> None:
    if not mask_hw.any():
        return
    for polygons in (level_set_outline(mask_hw, (values, box)), exact_polygons(mask_hw)):
        ring = join_polygons(polygons)
        assert np.array_equal(polygons_to_mask([Polygon(ring)], *mask_hw.shape), mask_hw)
        parts = split_ring(ring)
        assert np.array_equal(polygons_to_mask(parts, *mask_hw.shape), mask_hw)
        assert sum(part.area_px for part in parts) == pytest.approx(sum(polygon.area_px for polygon in polygons))


def test_parts_are_joined_where_they_are_closest() -> None:
    mask_hw = np.zeros((40, 100), dtype=bool)
    mask_hw[5:35, 5:30] = mask_hw[5:35, 34:60] = mask_hw[18:22, 62:95] = True
    ring = join_polygons(exact_polygons(mask_hw))
    steps = np.hypot(*(np.roll(ring, -1, axis=0) - ring).T)
    assert len(split_ring(ring)) == 3
    assert len(ring) == 12 + 4
    assert np.count_nonzero(np.isclose(steps, 4)) == 2 + 2  # a cut there and back, and the two ends of the bar


def test_a_ring_without_cuts_stays_one_polygon() -> None:
    ring = np.array([[0, 0], [10, 0], [10, 8], [0, 8]], dtype=float)
    (polygon,) = split_ring(ring[::-1])
    assert polygon.area_px == 80
    assert polygon.holes == ()


@pytest.mark.parametrize(
    ("rule", "parts", "holes"),
    [
        (CrumbRule(0, 0, 0, 0), 0, 0),
        (CrumbRule(part_px=20, hole_px=0), 1, 0),
        (CrumbRule(part_px=0, part_share=0.02, hole_px=0), 1, 0),
        (CrumbRule(part_px=0, part_share=0.05, hole_px=0), 2, 0),
        (CrumbRule(part_px=0, hole_px=5), 0, 1),
        (CrumbRule(part_px=0, hole_px=0, hole_share=0.2), 0, 2),
        (CrumbRule(part_px=1000), 3, 0),
    ],
)
def test_crumbs_are_small_beside_their_object(rule: CrumbRule, parts: int, holes: int) -> None:
    mask_hw = np.zeros((40, 60), dtype=bool)
    mask_hw[5:35, 5:30] = True  # 750 px with its holes
    mask_hw[10, 10] = False
    mask_hw[20:30, 10:20] = False
    mask_hw[5:10, 40:45] = True  # 25 px
    mask_hw[30:32, 50:53] = True  # 6 px
    cleaned_hw = remove_crumbs(mask_hw, rule)
    before, after = exact_polygons(mask_hw), exact_polygons(cleaned_hw)
    assert len(before) - len(after) == parts
    assert sum(len(part.holes) for part in after) == (2 - holes if after else 0)
    assert not (mask_hw & ~cleaned_hw).any() or parts


def test_masks_close_to_the_border_go_on_to_it() -> None:
    mask_hw = np.zeros((20, 20), dtype=bool)
    mask_hw[2:18, 5:10] = True
    assert reach_border(mask_hw, 2)[:, 5:10].all()
    assert not reach_border(mask_hw, 1)[0].any()
    assert reach_border(mask_hw, 0) is mask_hw
