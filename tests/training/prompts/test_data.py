"""Views with things of other images pasted in: what is seen of an object, and which pixels change."""

import numpy as np
import pytest

from training.prompts.data import LEAST_VISIBLE, covered, degraded, elsewhere, turned_box

SIDE = 64


def square(y: int, x: int, size: int) -> np.ndarray:
    """A mask of one square, bool SIDE x SIDE."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y : y + size, x : x + size] = True
    return mask


def plain(value: int) -> np.ndarray:
    """A view of one grey."""
    return np.full((SIDE, SIDE, 3), value, np.uint8)


def test_an_object_elsewhere_keeps_its_pixels_and_all_around_it_is_the_other_photograph() -> None:
    mask = square(20, 20, 24)
    pixels, visible = elsewhere(plain(200), mask, plain(40), np.random.default_rng(0))
    assert (visible == mask).all()
    assert (pixels[28:36, 28:36] == 200).all()
    assert (pixels[:10] == 40).all()
    assert 40 < pixels[20, 30, 0] < 200  # the rim is soft


@pytest.mark.parametrize("seed", range(20))
def test_what_another_object_covers_is_not_of_the_mask(seed: int) -> None:
    mask = square(16, 16, 32)
    pixels, visible = covered(plain(200), mask, plain(40), square(24, 24, 16), np.random.default_rng(seed))
    assert not (visible & ~mask).any()
    assert visible.sum() >= LEAST_VISIBLE * mask.sum()
    covered_part = mask & ~visible
    # At the rim of the pasted object both are seen.
    assert (pixels[visible][:, 0] > 60).all()
    assert (pixels[covered_part][:, 0] < 180).all()


def test_an_object_that_would_hardly_be_seen_is_left_as_it_was() -> None:
    mask, everywhere = square(16, 16, 8), np.ones((SIDE, SIDE), bool)
    rng = np.random.default_rng(1)
    outcomes = [covered(plain(200), mask, plain(40), everywhere, rng) for _ in range(20)]
    assert any((visible == mask).all() and (pixels == 200).all() for pixels, visible in outcomes)
    assert all(visible.sum() >= LEAST_VISIBLE * mask.sum() for _, visible in outcomes)


@pytest.mark.parametrize("quarters", range(5))
def test_a_turned_box_lies_around_the_turned_mask(quarters: int) -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[5:20, 30:61] = True
    x0, y0, x1, y1 = (int(value) for value in turned_box((30, 5, 61, 20), SIDE, quarters))
    turned_mask = np.rot90(mask, quarters)
    assert turned_mask[y0:y1, x0:x1].all()
    assert turned_mask.sum() == (y1 - y0) * (x1 - x0)


@pytest.mark.parametrize("seed", range(10))
def test_a_degraded_view_shows_the_same_things_in_the_same_places(seed: int) -> None:
    mask = square(16, 16, 32)
    view = np.where(mask[:, :, None], plain(180), plain(60))
    worse = degraded(view, np.random.default_rng(seed))
    assert worse.shape == view.shape
    assert worse.dtype == np.uint8
    assert worse[24:40, 24:40].mean() > worse[:8].mean() + 20
    assert (worse != view).any()
