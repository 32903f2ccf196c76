"""Masks to polygons and back: exact at tolerance 0, certified and valid above it; shared edges stay one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from integration.polygons.contours import Polygon, exact_polygons, fill_even_odd
from integration.polygons.convert import outline_mask, outline_masks, polygons_to_mask
from integration.polygons.joining import join_polygons
from tests.integration.polygons.hausdorff import deviation_px

small_masks = arrays.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def picture(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


SHAPES = {
    "one pixel": (picture("#"), 1, 0),
    "empty": (picture("..", ".."), 0, 0),
    "full": (picture("###", "###"), 1, 0),
    "diagonal touch: two parts": (picture("#.", ".#"), 2, 0),
    "other diagonal": (picture(".#", "#."), 2, 0),
    "hole": (picture("###", "#.#", "###"), 1, 1),
    "ring closed by a diagonal: the hole touches the exterior": (picture("###", "#.#", "##."), 1, 1),
    "island in a hole": (picture("#####", "#...#", "#.#.#", "#...#", "#####"), 2, 1),
    "two holes that touch": (picture("####", "#.##", "##.#", "####"), 1, 2),
    "one pixel wide": (picture("#...", "####", "...#"), 1, 0),
    "border on all sides": (picture("#.#", "###", "#.#"), 1, 0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_parts_and_holes_of_known_shapes(name: str) -> None:
    mask, parts, holes = SHAPES[name]
    outline = outline_mask(mask)
    assert (len(outline), sum(len(polygon.holes) for polygon in outline)) == (parts, holes)
    assert np.array_equal(polygons_to_mask(outline, *mask.shape), mask)


def check_exact(mask: np.ndarray) -> None:
    outline = outline_mask(mask)
    assert np.array_equal(polygons_to_mask(outline, *mask.shape), mask)
    assert sum(polygon.area_px for polygon in outline) == mask.sum()
    assert shapes(outline).is_valid


def shapes(polygons: list[Polygon]) -> shapely.MultiPolygon:
    return shapely.MultiPolygon([shapely.Polygon(polygon.exterior, polygon.holes) for polygon in polygons])


@settings(max_examples=200, deadline=None)
@given(small_masks)
def test_round_trip_is_exact(mask: np.ndarray) -> None:
    check_exact(mask)


def noise(random: np.random.Generator) -> np.ndarray:
    height, width = random.integers(1, 13, 2)
    return np.asarray(random.random((height, width)) < random.random())


def thin_walk(random: np.random.Generator) -> np.ndarray:
    """A path one pixel wide, with diagonal steps, that crosses itself and runs along the border."""
    mask = np.zeros(random.integers(2, 13, 2), dtype=np.bool_)
    at = np.array(mask.shape) // 2
    for step in random.integers(-1, 2, (25, 2)):
        at = np.clip(at + step, 0, np.array(mask.shape) - 1)
        mask[tuple(at)] = True
    return mask


def nested(random: np.random.Generator) -> np.ndarray:
    """Parts in holes in parts, as boxes that turn over what is in them."""
    mask = np.zeros((13, 13), dtype=np.bool_)
    for _ in range(5):
        (top, bottom), (left, right) = np.sort(random.integers(0, 14, (2, 2)), axis=1)
        mask[top:bottom, left:right] ^= True
    return mask


@pytest.mark.parametrize("family", [noise, thin_walk, nested])
def test_round_trip_is_exact_for_thousands_of_masks(family: Callable) -> None:
    random = np.random.default_rng(4)
    for _ in range(800):
        check_exact(family(random))


@pytest.mark.parametrize("tolerance_px", [0.5, 1.0, 3.0])
def test_the_certified_distance_holds_between_samples(tolerance_px: float) -> None:
    mask = smooth_mask(7)
    outline = outline_mask(mask, tolerance_px=tolerance_px)
    assert deviation_px(outline, exact_polygons(mask), step_px=0.01) <= tolerance_px + 1e-6


def test_every_mask_of_three_by_three() -> None:
    for bits in range(512):
        check_exact(np.array([bits >> i & 1 for i in range(9)], dtype=np.bool_).reshape(3, 3))


def smooth_mask(seed: int, height: int = 60, width: int = 70) -> np.ndarray:
    """A mask with curved outlines, parts and holes."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    field = sum(
        np.cos(x * a + y * b + c) for a, b, c in random.uniform(-0.35, 0.35, (6, 3)) * np.array([1.0, 1.0, 18.0])
    )
    return np.asarray(field > random.uniform(-0.5, 1.5))


@pytest.mark.parametrize("tolerance_px", [0.3, 0.5, 0.71, 1.0, 1.5, 2.5, 6.0])
@pytest.mark.parametrize("seed", range(4))
def test_simplified_is_near_valid_and_of_the_same_topology(seed: int, tolerance_px: float) -> None:
    mask = smooth_mask(seed)
    exact, outline = exact_polygons(mask), outline_mask(mask, tolerance_px=tolerance_px)
    check_simplified(outline, exact, tolerance_px)


@settings(max_examples=80, deadline=None)
@given(small_masks, st.sampled_from([0.4, 0.75, 1.0, 2.0]))
def test_simplified_noise_keeps_its_topology(mask: np.ndarray, tolerance_px: float) -> None:
    check_simplified(outline_mask(mask, tolerance_px=tolerance_px), exact_polygons(mask), tolerance_px)


def check_simplified(outline: list[Polygon], exact: list[Polygon], tolerance_px: float) -> None:
    assert [len(polygon.holes) for polygon in outline] == [len(polygon.holes) for polygon in exact]
    assert shapes(outline).is_valid
    for polygon, reference in zip(outline, exact, strict=True):
        assert deviation_px([polygon], [reference]) <= tolerance_px + 1e-6
        assert polygon.vertex_count <= reference.vertex_count
        assert polygon.tolerance_px == tolerance_px


def test_fewer_vertices_than_douglas_peucker() -> None:
    ours = theirs = 0
    for seed in range(12):
        mask = smooth_mask(seed)
        ours += sum(polygon.vertex_count for polygon in outline_mask(mask, tolerance_px=1.0))
        for polygon in exact_polygons(mask):
            shape = shapely.Polygon(polygon.exterior, polygon.holes).simplify(1.0)
            theirs += sum(len(ring.coords) - 1 for ring in (shape.exterior, *shape.interiors))
    assert ours <= 0.85 * theirs


@pytest.mark.parametrize("max_vertices", [4, 8, 15, 40])
def test_vertex_budget_is_met_with_little_more_tolerance_than_needed(max_vertices: int) -> None:
    y, x = np.mgrid[:80, :80]
    mask = np.hypot(y - 40, x - 38) < 30 + 4 * np.cos(3 * np.arctan2(y - 40, x - 38))
    (outline,) = outline_mask(mask, max_vertices=max_vertices)
    assert outline.vertex_count <= max_vertices
    assert deviation_px([outline], exact_polygons(mask)) <= outline.tolerance_px + 1e-6
    tighter = outline_mask(mask, tolerance_px=outline.tolerance_px * 0.97)
    assert tighter[0].vertex_count > max_vertices


def test_a_budget_that_is_met_already_keeps_the_tolerance() -> None:
    (outline,) = outline_mask(np.ones((5, 5), dtype=np.bool_), max_vertices=10)
    assert (outline.vertex_count, outline.tolerance_px) == (4, 0.0)


def test_small_parts_and_holes_go_only_when_asked() -> None:
    mask = np.zeros((30, 30), dtype=np.bool_)
    mask[2:20, 2:20] = True
    mask[5, 5] = False
    mask[25:27, 25:27] = True
    assert [len(p.holes) for p in outline_mask(mask, tolerance_px=1.0)] == [1, 0]
    assert [len(p.holes) for p in outline_mask(mask, tolerance_px=1.0, min_area_px=2.0)] == [0, 0]
    assert [len(p.holes) for p in outline_mask(mask, min_area_px=5.0)] == [0]


@settings(max_examples=100, deadline=None)
@given(small_masks)
def test_keyholes_fill_exactly_what_the_polygon_fills(mask: np.ndarray) -> None:
    for polygon in outline_mask(mask):
        ring = join_polygons([polygon])
        assert filled(ring, mask.shape) == filled_polygon(polygon, mask.shape)
        percent = np.round(ring / mask.shape[::-1] * 100, 6)  # as Label Studio stores it
        assert filled(percent * mask.shape[::-1] / 100, mask.shape) == filled_polygon(polygon, mask.shape)


def test_keyhole_of_a_simplified_polygon_fills_the_same() -> None:
    for seed in range(6):
        mask = smooth_mask(seed)
        for polygon in outline_mask(mask, tolerance_px=1.0):
            assert filled(join_polygons([polygon]), mask.shape) == filled_polygon(polygon, mask.shape)


def filled(ring: np.ndarray, shape: tuple[int, ...]) -> bytes:
    mask = np.zeros(shape, dtype=np.bool_)
    fill_even_odd([ring], mask)
    return mask.tobytes()


def filled_polygon(polygon: Polygon, shape: tuple[int, ...]) -> bytes:
    return polygons_to_mask([polygon], *shape).tobytes()


def test_polygons_outside_the_image_are_clipped_and_overlaps_united() -> None:
    square = Polygon(np.array([[-3.0, -3.0], [2.0, -3.0], [2.0, 2.0], [-3.0, 2.0]]))
    overlapping = Polygon(np.array([[1.0, 1.0], [9.0, 1.0], [9.0, 9.0], [1.0, 9.0]]))
    outside_polygon = Polygon(np.array([[20.0, 20.0], [30.0, 20.0], [25.0, 30.0]]))
    expected = picture("##..", "####", ".###")
    assert np.array_equal(polygons_to_mask([square, overlapping, outside_polygon], 3, 4), expected)


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
    for polygons, mask in zip(outline_masks([a, b]), (a, b), strict=True):
        assert np.array_equal(polygons_to_mask(polygons, 12, 12), mask)


def test_no_masks_no_polygons() -> None:
    assert outline_masks([]) == []
