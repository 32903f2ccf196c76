"""Tiling: whatever the cuts, the objects are those of the uncut image. The predictor is a plain flood fill."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from model.inference.tiling import Tiling, predict_tiled, tiles_of
from model.instance import Instance

# class -> colour of its objects
COLOURS = {"gear": (250, 20, 20), "leaf": (20, 250, 20)}
SMALL = Tiling(above_px=64, tile_px=64, overlap_px=24, overview=False)


def blobs(images: list[np.ndarray]) -> list[list[Instance]]:
    """One instance for each connected area of a class's colour; the largest scores best."""
    return [[instance for label in COLOURS for instance in _of_class(image, label)] for image in images]


def _of_class(image: np.ndarray, label: str) -> list[Instance]:
    areas, count = ndimage.label((np.abs(image.astype(int) - COLOURS[label]) < 60).all(axis=2))
    instances = []
    for number in range(1, count + 1):
        mask = areas == number
        rows, columns = np.nonzero(mask)
        box = (float(columns.min()), float(rows.min()), columns.max() + 1.0, rows.max() + 1.0)
        instances.append(Instance(box, label, 1 - 1 / (1 + len(rows)), mask, 0.1))
    return instances


def as_set(instances: list[Instance]) -> set[tuple[str, bytes, tuple[float, ...]]]:
    return {(instance.label, np.packbits(instance.mask_hw).tobytes(), instance.box_xyxy) for instance in instances}


@st.composite
def pictures(draw: st.DrawFn, most_px: int) -> np.ndarray:
    """Rectangles and ellipses of up to `most_px`, apart from each other, of two classes."""
    height, width = draw(st.integers(40, 200)), draw(st.integers(65, 220))
    image = np.zeros((height, width, 3), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for _ in range(draw(st.integers(0, 7))):
        h, w = draw(st.integers(1, most_px)), draw(st.integers(1, most_px))
        top, left = draw(st.integers(-5, height)), draw(st.integers(-5, width))
        inside = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
        if draw(st.booleans()):
            y, x = (rows + 0.5 - top - h / 2) / (h / 2), (columns + 0.5 - left - w / 2) / (w / 2)
            inside = x**2 + y**2 <= 1
        if not image[ndimage.binary_dilation(inside, iterations=2)].any():
            image[inside] = COLOURS[draw(st.sampled_from(sorted(COLOURS)))]
    return image


@settings(max_examples=30)
@given(pictures(most_px=22))
def test_objects_that_fit_are_those_of_the_uncut_image(image):
    expected = blobs([image])[0]
    assert as_set(predict_tiled(blobs, image, SMALL)) == as_set(expected)
    with_overview = Tiling(above_px=64, tile_px=64, overlap_px=24)
    assert as_set(predict_tiled(blobs, image, with_overview, batch=3)) == as_set(expected)


@settings(max_examples=30)
@given(pictures(most_px=150))
def test_objects_larger_than_a_tile_are_sewn_together(image):
    instances = predict_tiled(blobs, image, SMALL)
    assert as_set(instances) == as_set(blobs([image])[0])
    assert [instance.score for instance in instances] == sorted((i.score for i in instances), reverse=True)


@pytest.mark.parametrize(
    ("height", "width", "count"), [(64, 64, 1), (10, 10, 1), (64, 65, 2), (64, 104, 2), (64, 105, 3), (200, 200, 25)]
)
def test_tiles_cover_the_image_and_overlap(height, width, count):
    tiles = tiles_of(height, width, SMALL)
    assert len(tiles) == count
    cover = np.zeros((height, width), int)
    for tile in tiles:
        assert tile.bottom <= height
        assert tile.right <= width
        cover[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert cover.min() >= 1
    lefts = sorted({tile.left for tile in tiles})
    assert all(right - left <= 64 - 24 for left, right in itertools.pairwise(lefts))


def two_views(image: np.ndarray, left: list[Instance], right: list[Instance]) -> list[Instance]:
    """What is made of a 64 x 104 image whose two tiles show these."""
    answers = iter([left, right])
    return predict_tiled(lambda images: [next(answers)], image, SMALL)


def box(top: int, left: int, bottom: int, right: int, label: str = "gear", score: float = 0.9) -> Instance:
    mask = np.zeros((64, 64), bool)
    mask[top:bottom, left:right] = True
    return Instance((left, top, right, bottom), label, score, mask, 0.2)


IMAGE = np.zeros((64, 104, 3), np.uint8)


def test_an_object_of_another_class_is_another_object():
    # The right tile starts at column 40.
    instances = two_views(IMAGE, [box(10, 30, 40, 64)], [box(10, 10, 40, 50, "leaf")])
    assert {instance.label for instance in instances} == {"gear", "leaf"}


def test_a_sliver_that_its_neighbour_shows_whole_is_left_out():
    """The right tile calls the end of the object something else."""
    instances = two_views(IMAGE, [box(10, 20, 40, 50)], [box(10, 0, 40, 10, "leaf")])
    assert [instance.label for instance in instances] == ["gear"]


def test_a_part_mistaken_for_another_class_is_left_out():
    """The right tile sees more than the left one has, yet less than both together."""
    left, right = box(10, 2, 40, 64), box(10, 0, 40, 62)
    mistaken = box(12, 40, 38, 64, "leaf", score=0.6)
    instances = two_views(IMAGE, [left, mistaken], [right])
    assert [instance.label for instance in instances] == ["gear"]


def test_near_a_cut_the_other_tile_decides():
    """Each tile's outline is frayed at its own border and right elsewhere."""
    frayed_left, frayed_right = box(10, 20, 40, 64), box(10, 0, 40, 50)
    frayed_left.mask_hw[10:16, 60:] = False
    frayed_right.mask_hw[34:40, :4] = False
    (instance,) = two_views(IMAGE, [frayed_left], [frayed_right])
    expected = np.zeros((64, 104), bool)
    expected[10:40, 20:90] = True
    assert (instance.mask_hw == expected).all()
    assert instance.box_xyxy == (20, 10, 90, 40)
    assert instance.score == pytest.approx(0.9)


def test_the_overview_joins_what_tiles_see_apart_and_finds_what_they_miss():
    """Flat areas without an edge are nothing to a tile; here it sees objects only where both colours show."""

    def edges_only(images: list[np.ndarray]) -> list[list[Instance]]:
        return [[instance for instance in instances if not instance.mask_hw.all()] for instances in blobs(images)]

    image = np.zeros((320, 320, 3), np.uint8)
    image[20:300, 20:300] = COLOURS["gear"]
    (joined,) = predict_tiled(edges_only, image, Tiling(64, 64, 24, overview=True))
    expected = image[..., 0] > 0
    agreement = (joined.mask_hw & expected).sum() / (joined.mask_hw | expected).sum()
    assert agreement > 0.97


@pytest.mark.parametrize(("tile_px", "overlap_px"), [(64, 64), (64, 0), (32, 64)])
def test_tiles_must_be_larger_than_their_overlap(tile_px, overlap_px):
    with pytest.raises(ValueError, match=f"tile_px {tile_px}"):
        Tiling(100, tile_px, overlap_px)


def test_small_images_are_not_cut():
    assert not Tiling().cuts(np.zeros((4096, 4096, 3), np.uint8))
    assert Tiling().cuts(np.zeros((10, 4097, 3), np.uint8))
    assert not Tiling(above_px=0).cuts(np.zeros((10, 9999, 3), np.uint8))
