"""Simulated clicks: computed by hand, and that they lie in the error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.config import get_config
from model.inference.prompt_predictor import PromptPredictor
from model.prompts.answers import Prompt, mask_of_view
from model.prompts.network import VIEW_SIDE, PromptNetwork
from model.prompts.views import view_of_box
from training.prompts.clicks import next_click
from training.prompts.evaluate import best_refinement, ellipse_in_box, mean_interval, overlap


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


def test_the_truth_at_every_place_is_the_best_refinement() -> None:
    torch.manual_seed(0)
    predictor = PromptPredictor(PromptNetwork(get_config("prompts/photos")).eval())
    head = predictor.network.mask_head
    truth = np.zeros((64, 64), bool)
    truth[10:40, 20:50] = True
    view = view_of_box((0, 0, 64, 64), VIEW_SIDE, 1.0)
    image = np.zeros((64, 64, 3), np.uint8)
    prompt = Prompt(box_xyxy=(20, 10, 50, 40))
    head.settings = replace(head.settings, region="full")
    everywhere = best_refinement(predictor, image, view, prompt, truth)
    assert np.array_equal(mask_of_view(view, everywhere, truth.shape), truth)
    head.settings = replace(head.settings, region="incoherent", thresholds_test=(1.1, 1.1))
    nowhere = best_refinement(predictor, image, view, prompt, truth)
    assert np.allclose(nowhere, predictor.look(image, [view], [prompt])[1][0], atol=1e-5), "the coarse mask"
