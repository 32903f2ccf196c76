"""Masks of one image that agree with each other and with its edges, on drawn pictures."""

from __future__ import annotations

import numpy as np
import pytest

from integration.polygons.convert import polygons_to_mask, smooth_outline
from model.inference.composition import Claim, compete, compose, smooth
from model.instance import Instance, ProbabilityPatch, iou

HEIGHT, WIDTH = 60, 80
ANY_SIZE = (1000, 1000)


def square(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask_hw = np.zeros((HEIGHT, WIDTH), bool)
    mask_hw[top:bottom, left:right] = True
    return mask_hw


def instance(probabilities_hw: np.ndarray, score: float = 0.9) -> Instance:
    patch = ProbabilityPatch(probabilities_hw.astype(np.float32), (0.0, 0.0, float(WIDTH), float(HEIGHT)))
    return Instance((0, 0, WIDTH, HEIGHT), "key", score, probabilities_hw >= 0.5, probabilities=patch)


def picture(*masks_hw: np.ndarray) -> np.ndarray:
    """Each mask in a colour of its own on grey, the first in front, with a little noise."""
    colours = np.array([(200, 60, 40), (40, 80, 200), (60, 180, 70)])
    image_rgb = np.full((HEIGHT, WIDTH, 3), 120.0)
    for mask_hw, colour in reversed(list(zip(masks_hw, colours, strict=False))):
        image_rgb[mask_hw] = colour
    noise = np.random.default_rng(0).normal(0, 4, image_rgb.shape)
    return np.clip(image_rgb + noise, 0, 255).astype(np.uint8)


def test_a_ragged_mask_follows_the_images_edge() -> None:
    truth = square(20, 15, 60, 45)
    rng = np.random.default_rng(1)
    ragged = np.where(truth, 0.9, 0.1)
    ragged[:, 17:24] = rng.uniform(0.2, 0.8, (HEIGHT, 7))
    (composed,) = compose(picture(truth), [instance(ragged)], ANY_SIZE)
    assert iou(ragged >= 0.5, truth) < 0.93
    assert iou(composed.mask_hw, truth) > 0.99


def test_the_smaller_object_lies_in_front_and_no_place_has_two_owners() -> None:
    small, large = square(30, 20, 45, 35), square(10, 5, 75, 55)
    claims = [instance(np.where(small, 0.8, 0.05)), instance(np.where(large, 0.85, 0.05))]
    in_front, behind = compose(picture(small, large), claims, ANY_SIZE)
    assert not (in_front.mask_hw & behind.mask_hw).any()
    assert iou(in_front.mask_hw, small) > 0.98
    assert iou(behind.mask_hw, large & ~small) > 0.98


@pytest.mark.parametrize(("lead", "front_weight", "winner"), [(1.0, 0.0, 0), (-1.0, 0.0, 1), (-1.0, 1.0, 0)])
def test_a_place_goes_to_one_claim(lead: float, front_weight: float, winner: int) -> None:
    window = slice(2, 4), slice(3, 6)
    first = Claim(window, np.full((2, 3), 2 + lead, np.float32), 10)
    second = Claim((slice(0, 4), slice(0, 6)), np.full((4, 6), 2, np.float32), 100)
    claims = compete([first, second], front_weight)
    assert [bool(claim.logits_hw[-1, -1] > 0) for claim in claims] == [winner == 0, winner == 1]
    assert (claims[1].logits_hw[:2] == 2).all()  # nobody else's


def test_what_claims_nothing_takes_nothing() -> None:
    window = slice(0, 2), slice(0, 2)
    doubtful, sure = (Claim(window, np.full((2, 2), value, np.float32), 4) for value in (0.3, -0.2))
    assert (compete([doubtful, sure], 0.0)[0].logits_hw > 0).all()


def test_weak_ones_doubles_and_those_without_probabilities_stay_as_they_are() -> None:
    truth = square(20, 15, 60, 45)
    good, double, weak = (instance(np.where(truth, 0.9, 0.1), score) for score in (0.9, 0.8, 0.3))
    plain = Instance((0, 0, 9, 9), "key", 0.95, square(2, 2, 9, 9))
    composed = compose(picture(truth), [plain, good, double, weak], ANY_SIZE)
    assert [result is original for result, original in zip(composed, [plain, good, double, weak], strict=True)] == [
        True, False, True, True
    ]  # fmt: skip


@pytest.mark.parametrize("limit_hw", [ANY_SIZE, (30, 40), (25, 1000)])
def test_large_images_are_composed_at_a_smaller_size_and_outlines_rasterise_exactly(limit_hw: tuple[int, int]) -> None:
    truth = square(20, 15, 60, 45)
    (composed,) = compose(picture(truth), [instance(np.where(truth, 0.8, 0.2))], limit_hw)
    assert composed.mask_hw.shape == (HEIGHT, WIDTH)
    assert iou(composed.mask_hw, truth) > 0.85
    assert composed.probabilities is not None
    polygons = smooth_outline(composed.mask_hw, (composed.probabilities.values, composed.probabilities.box_xyxy))
    np.testing.assert_array_equal(polygons_to_mask(polygons, HEIGHT, WIDTH), composed.mask_hw)


def test_an_image_without_objects_stays_empty() -> None:
    assert compose(picture(), [], ANY_SIZE) == []


def test_smoothing_solves_its_equations() -> None:
    rng = np.random.default_rng(2)
    height, width = 5, 6
    values, confidence = rng.uniform(0, 1, (2, height, width)).astype(np.float32)
    confidence += 0.1
    across, down = rng.uniform(0, 3, (height, width - 1)), rng.uniform(0, 3, (height - 1, width))
    matrix = np.diag(confidence.ravel().astype(float))
    number = np.arange(height * width).reshape(height, width)
    for links, starts, ends in ((across, number[:, :-1], number[:, 1:]), (down, number[:-1], number[1:])):
        for weight, a, b in zip(links.ravel(), starts.ravel(), ends.ravel(), strict=True):
            matrix[[a, b], [a, b]] += weight
            matrix[[a, b], [b, a]] -= weight
    expected = np.linalg.solve(matrix, (confidence * values).ravel()).reshape(height, width)
    np.testing.assert_allclose(smooth(values, confidence, across, down), expected, atol=1e-3)
