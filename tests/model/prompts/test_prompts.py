"""Views, prompt maps and the promptable network: geometry exactly, the network by its mechanics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st

import model
from model.config import get_config
from model.inference.prompt_predictor import PromptPredictor
from model.prompts.answers import Prompt, as_instance, changed_part, heeded, is_cut, prompt_steps, view_of_change
from model.prompts.network import PROMPT_MAPS, VIEW_SIDE, PromptNetwork, prompt_maps
from model.prompts.views import MOST_STRETCH, View, resampled, view_of_box
from training.prompts.evaluate import overlap


@pytest.fixture(scope="module")
def predictor() -> PromptPredictor:
    torch.manual_seed(0)
    return PromptPredictor(PromptNetwork(get_config("prompts/photos")).eval())


@given(
    st.floats(-50, 400), st.floats(-50, 400), st.floats(0.5, 300), st.floats(0.5, 300), st.sampled_from([1.0, 1.4, 2.0])
)
def test_views_hold_their_box_and_stretch_little(x: float, y: float, w: float, h: float, margin: float) -> None:
    view = view_of_box((x, y, x + w, y + h), VIEW_SIDE, margin)
    x0, y0, x1, y1 = view.box_xyxy
    assert x0 <= x + 1e-6
    assert x1 >= x + w - 1e-6
    assert y0 <= y + 1e-6
    assert y1 >= y + h - 1e-6
    assert 1 / MOST_STRETCH - 1e-6 <= (x1 - x0) / (y1 - y0) <= MOST_STRETCH + 1e-6


def test_masks_go_to_the_view_and_back() -> None:
    mask = np.zeros((120, 160), bool)
    mask[40:80, 50:110] = True
    view = view_of_box((50, 40, 110, 80), 128)
    restored = view.to_image(view.pixels(mask.astype(np.uint8) * 255, 0) / 255.0, mask.shape) >= 0.5
    assert (restored & mask).sum() / (restored | mask).sum() > 0.97


def test_views_reach_over_the_border() -> None:
    image = np.full((40, 60, 3), 200, np.uint8)
    pixels = view_of_box((-20, -20, 20, 20), 64, 1.0).pixels(image)
    assert (pixels[:30, :30] != 200).all()
    assert (pixels[34:, 34:] == 200).all()


def test_prompt_maps_mark_what_was_pointed_at() -> None:
    maps = prompt_maps((10.0, 20.0, 30.5, 40.0), [(100.0, 100.0, True), (150.0, 50.0, False)], None)
    assert maps.shape == (PROMPT_MAPS, VIEW_SIDE, VIEW_SIDE)
    assert maps[0].sum() == pytest.approx(20.5 * 20)
    assert maps[1, 100, 100] == 1
    assert maps[2, 50, 150] == 1
    assert maps[1, 50, 150] == 0
    assert maps[3].sum() == 0


def test_an_untrained_network_ignores_prompts_and_answers_all_the_same(predictor: PromptPredictor) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    prompted = predictor.image(image)
    answers = [
        prompted.prompt(Prompt(box_xyxy=(20, 20, 70, 60))),
        prompted.prompt(Prompt(points=((30, 30, True), (100, 80, False)))),
        *prompted.prompt_boxes([(20, 20, 70, 60), (0, 0, 120, 90)]),
    ]
    for answer in answers:
        assert answer.mask_hw.shape == (90, 120)
        assert answer.mask_hw.any()
        assert answer.probabilities is not None
    assert np.array_equal(answers[0].mask_hw, answers[2].mask_hw), "a batch answers as a single prompt does"


def test_a_mirrored_image_has_the_mirrored_answer() -> None:
    torch.manual_seed(3)
    predictor = PromptPredictor(PromptNetwork(get_config("prompts/photos")).eval())
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    view = view_of_box((0, 0, 64, 64), VIEW_SIDE, 1.0)
    refined, _, scores = predictor.look(image, [view], [Prompt(box_xyxy=(10, 10, 40, 50))])
    mirrored, _, other = predictor.look(
        np.ascontiguousarray(image[:, ::-1]), [view], [Prompt(box_xyxy=(24, 10, 54, 50))]
    )
    assert np.allclose(refined, mirrored[:, :, ::-1], atol=1e-5)
    assert np.allclose(scores, other, atol=1e-5)


def test_where_nothing_is_likely_the_likeliest_part_comes() -> None:
    values = np.full((128, 128), 0.01, np.float32)
    values[60:70, 60:70] = 0.2
    view = view_of_box((10, 10, 60, 60), VIEW_SIDE)
    mask = as_instance(view, values, 0.1, Prompt(box_xyxy=(10, 10, 60, 60)), (80, 80)).mask_hw
    assert mask.any()
    assert mask[30:40, 30:40].any()
    assert not mask[:20].any()


def test_an_answer_to_a_box_stays_near_the_box() -> None:
    view = view_of_box((20, 20, 60, 60), VIEW_SIDE)
    mask = as_instance(view, np.ones((128, 128), np.float32), 0.9, Prompt(box_xyxy=(20, 20, 60, 60)), (90, 90)).mask_hw
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert rows[0] >= 13
    assert rows[-1] <= 66
    assert columns[0] >= 13
    assert columns[-1] <= 66
    assert mask[20:60, 20:60].all()


def test_parts_that_no_click_touches_leave() -> None:
    values = np.zeros((128, 128), np.float32)
    values[20:60, 20:60] = 0.9
    values[100:104, 100:104] = 0.9
    view = view_of_box((0, 0, 64, 64), VIEW_SIDE, 1.0)
    mask = as_instance(view, values, 0.9, Prompt(points=((20.0, 20.0, True),)), (64, 64)).mask_hw
    assert mask[20, 20]
    assert not mask[51, 51]


A, B, C = (30.0, 30.0, True), (60.0, 40.0, False), (50.0, 50.0, True)
BOX = (20.0, 20.0, 70.0, 60.0)


@pytest.mark.parametrize(
    ("prompt", "counts"),
    [
        pytest.param(Prompt(box_xyxy=BOX), [0], id="a box alone"),
        pytest.param(Prompt(box_xyxy=BOX, points=(B, A)), [0, 1, 2], id="a box, then its clicks"),
        pytest.param(Prompt(points=(A, B)), [2], id="first clicks together"),
        pytest.param(Prompt(points=(A, B, C, A, B)), [3, 4, 5], id="clicks"),
        pytest.param(Prompt(points=(B, B, B, A, C)), [4, 5], id="from the first positive click on"),
        pytest.param(Prompt(points=(B, A), mask_hw=np.ones((4, 4), bool)), [2], id="a mask: all at once"),
    ],
)
def test_a_prompt_is_answered_in_steps(prompt: Prompt, counts: list[int]) -> None:
    steps = prompt_steps(prompt)
    assert [len(step.points) for step in steps] == counts
    assert steps[-1] == prompt


def test_the_next_click_begins_with_the_answer_before(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    predictor = PromptPredictor(PromptNetwork(get_config("prompts/photos")).eval())
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    seen: list[tuple[int, bool]] = []
    look = PromptPredictor.look

    def recorded(
        self: PromptPredictor, image_rgb: np.ndarray, views: list[View], prompts: list[Prompt], **how: bool
    ) -> object:
        seen.append((len(prompts[0].points), prompts[0].mask_hw is not None))
        return look(self, image_rgb, views, prompts, **how)

    monkeypatch.setattr(PromptPredictor, "look", recorded)
    prompted = predictor.image(image)
    prompted.prompt(Prompt(box_xyxy=BOX))
    kept = prompted.prompt(Prompt(box_xyxy=BOX, points=(A, B)))
    assert list(dict.fromkeys(seen)) == [(0, False), (1, True), (2, True)]
    assert seen.count((0, False)) == 1, "the box is not answered again"
    again = predictor.image(image).prompt(Prompt(box_xyxy=BOX, points=(A, B)))
    assert np.array_equal(kept.mask_hw, again.mask_hw), "whoever remembers nothing answers the same"


def test_a_small_change_is_looked_at_from_nearer_and_the_rest_stays() -> None:
    view = view_of_box((0, 0, 128, 128), VIEW_SIDE, 1.0)
    earlier, values = np.zeros((64, 64), np.float32), np.zeros((64, 64), np.float32)
    earlier[10:30, 10:30] = 0.9
    values[10:30, 10:40] = 0.9
    values[50:60, 50:60] = 0.9
    part = changed_part(values, earlier, (20, 35))
    assert part is not None
    assert np.array_equal(np.argwhere(part)[[0, -1]], [[10, 30], [29, 39]])
    nearer = view_of_change(view, part, (70.0, 40.0, True))
    assert nearer is not None
    assert nearer.box_xyxy == pytest.approx((38, 8, 102, 72))
    assert changed_part(values, earlier, (5, 5)) is None
    around_click = view_of_change(view, None, (70.0, 40.0, True))
    assert around_click is not None
    assert around_click.box_xyxy == pytest.approx((54, 24, 86, 56))
    assert view_of_change(view, np.ones((64, 64), bool), (70.0, 40.0, True)) is None


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        pytest.param((20, 30), (20, 30), False, id="inside the nearer view"),
        pytest.param((20, 40), (20, 30), True, id="to its lower border"),
        pytest.param((20, 30), (10, 30), True, id="to its left border"),
        pytest.param((0, 30), (20, 30), False, id="to the image's border"),
        pytest.param((20, 30), (50, 60), False, id="elsewhere"),
    ],
)
def test_a_change_is_cut_at_the_border_of_its_nearer_view(
    rows: tuple[int, int], columns: tuple[int, int], expected: bool
) -> None:
    view, near_view = View((0, -20, 128, 108), VIEW_SIDE), View((20, -20, 80, 60), VIEW_SIDE)
    part = np.zeros((64, 64), bool)
    part[slice(*rows), slice(*columns)] = True
    assert is_cut(part, view, near_view, (100, 128)) == expected


@given(st.floats(0.5, 127.5), st.floats(0.5, 127.5), st.booleans(), st.integers(0, 99))
def test_a_click_is_heeded_whatever_the_network_says(x: float, y: float, is_positive: bool, seed: int) -> None:
    values = np.random.default_rng(seed).random((64, 64), np.float32)
    view = view_of_box((0, 0, 128, 128), VIEW_SIDE, 1.0)
    after = heeded(values, view, (x, y, is_positive))
    row, column = int(y / 2), int(x / 2)
    if (values[row, column] >= 0.5) == is_positive:
        assert np.array_equal(after, values)
    else:
        assert (after[row, column] >= 0.5) == is_positive
        assert (after >= values - 1e-6).all() if is_positive else (after <= values + 1e-6).all()


def test_what_a_heeded_click_changes_ends_at_the_networks_edges_and_near_the_click() -> None:
    values = np.full((128, 128), 0.3, np.float32)
    values[:, 64:] = 0.02
    view = view_of_box((0, 0, 128, 128), VIEW_SIDE, 1.0)
    changed = heeded(values, view, (62.0, 40.0, True)) >= 0.5
    assert changed[40, 61:64].all()
    assert not changed[:, 64:].any()
    assert not changed[:, :56].any()
    assert np.array_equal(heeded(values, view, (200.0, 40.0, True)), values), "the view does not show it"


@pytest.mark.parametrize("start", [Prompt(box_xyxy=BOX), Prompt(points=(A,)), Prompt(mask_hw=np.eye(90, 120) > 0)])
def test_no_click_goes_without_an_effect(predictor: PromptPredictor, start: Prompt) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    clicks = [*start.points, (60.5, 30.5, False), (40.5, 50.5, True), (62.5, 52.5, False), (30.5, 28.5, True)]
    prompted = predictor.image(image)
    for count in range(len(start.points) + 1, len(clicks) + 1):
        mask_hw = prompted.prompt(replace(start, points=tuple(clicks[:count]))).mask_hw
        x, y, is_positive = clicks[count - 1]
        assert mask_hw[int(y), int(x)] == is_positive, (count, x, y)


@given(st.floats(-20, 60), st.floats(10, 90), st.integers(4, 60), st.integers(4, 60))
def test_values_are_carried_from_window_to_window(left: float, width: float, rows: int, columns: int) -> None:
    """A linear ramp is the same ramp on any grid of any window inside it."""
    window = (-40.0, -40.0, 160.0, 160.0)
    ramp = np.tile(np.linspace(-40 + 0.5, 160 - 0.5, 200, dtype=np.float32), (200, 1))
    box = (left, left, left + width, left + width)
    seen = resampled(ramp, window, box, (rows, columns))
    centres = left + (np.arange(columns) + 0.5) * width / columns
    assert seen.shape == (rows, columns)
    assert np.allclose(seen, centres[None], atol=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"points": ((1, 1, False),)}, "positive click"),
        ({"box_xyxy": (5, 5, 5, 9)}, "left < right"),
        ({}, "needs a box"),
    ],
)
def test_prompts_that_say_nothing_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompt(**fields)  # type: ignore[arg-type]


def test_losses_reach_every_part() -> None:
    from detectron2.utils.events import EventStorage

    torch.manual_seed(1)
    network = PromptNetwork(get_config("prompts/photos"))
    masks = torch.zeros(2, VIEW_SIDE, VIEW_SIDE, dtype=torch.bool)
    masks[:, 60:200, 80:180] = True
    with EventStorage(0):
        terms = network.losses(
            torch.rand(2, 3, VIEW_SIDE, VIEW_SIDE) * 255, torch.rand(2, 4, VIEW_SIDE, VIEW_SIDE), masks
        )
    torch.stack(list(terms.values())).sum().backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None and "encoder" not in name]
    assert missing == []


@pytest.fixture(scope="module")
def photos() -> PromptPredictor:
    return PromptPredictor.from_checkpoint(Path(model.__file__).parent / "weights" / "photos", device="cpu")


def test_a_first_click_in_the_middle_of_a_common_object_means_it(photos: PromptPredictor) -> None:
    person = skimage.data.astronaut()
    by_box = photos.prompt(person, Prompt(box_xyxy=(14, 14, 364, 508))).mask_hw
    middle = Prompt(points=((200.0, 300.0, True),))
    assert overlap(photos.prompt(person, middle).mask_hw, by_box) > 0.8
    assert overlap(replace(photos, detector=None).prompt(person, middle).mask_hw, by_box) < 0.8, "no part of it alone"
    plain = replace(photos, detector=None)
    corner = Prompt(points=((60.0, 470.0, True),))  # the sleeve, in the middle of no detection
    assert np.array_equal(photos.prompt(person, corner).mask_hw, plain.prompt(person, corner).mask_hw)


def test_the_next_click_corrects_the_common_object(photos: PromptPredictor) -> None:
    person = skimage.data.astronaut()
    first, second = (230.0, 330.0, True), (300.0, 60.0, False)
    image = photos.image(person)
    whole = image.prompt(Prompt(points=(first,))).mask_hw
    later = image.prompt(Prompt(points=(first, second))).mask_hw
    assert whole[60, 300] or not later[60, 300]
    assert overlap(whole, later) > 0.5
    assert np.array_equal(photos.prompt(person, Prompt(points=(first, second))).mask_hw, later)
