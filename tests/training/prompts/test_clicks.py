"""Simulated clicks: computed by hand, and that they lie in the error."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.prompts.clicks import next_click
from training.prompts.evaluate import ellipse_in_box, mean_interval, overlap


def test_the_first_click_is_in_the_middle() -> None:
    truth = np.zeros((20, 20), bool)
    truth[5:14, 5:14] = True
    assert next_click(truth, np.zeros_like(truth)) == (9.5, 9.5, True)


def test_too_much_is_clicked_away() -> None:
    truth = np.zeros((20, 20), bool)
    guess = np.zeros((20, 20), bool)
    guess[0:9, 0:9] = True
    assert next_click(truth, guess) == (4.5, 4.5, False)


def test_no_error_needs_no_click() -> None:
    mask = np.eye(5, dtype=bool)
    assert next_click(mask, mask) is None


@given(st.integers(0, 2**32 - 1))
def test_clicks_lie_in_the_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, guess = rng.random((12, 12)) < 0.5, rng.random((12, 12)) < 0.5
    click = next_click(truth, guess, rng=rng)
    if click is not None:
        x, y, is_positive = click
        assert truth[int(y), int(x)] is np.bool_(is_positive)
        assert guess[int(y), int(x)] is np.bool_(not is_positive)


def test_yardsticks() -> None:
    ellipse = ellipse_in_box((0, 0, 100, 50), (50, 100))
    assert abs(ellipse.mean() - np.pi / 4) < 0.01
    assert overlap(ellipse, ellipse) == 1
    low, high = mean_interval(np.array([0.1, 0.2, 0.3] * 30))
    assert low < 0.2 < high
