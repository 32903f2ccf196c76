"""Plans of vertex edits: what they end with is good, and no shorter way was left."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.devtools.edit_plan import GoodOutline, Target, actions_of, cheapest_stretch, plan_vertices
from integration.polygons.convert import outline_mask, polygons_to_mask
from integration.polygons.joining import join_polygons, split_ring

SIDE = 60


def ring_of(mask_hw: np.ndarray) -> np.ndarray:
    return join_polygons(outline_mask(mask_hw))


def boxes(*corners: tuple[int, int, int, int]) -> np.ndarray:
    mask_hw = np.zeros((SIDE, SIDE), bool)
    for left, top, right, bottom in corners:
        mask_hw[top:bottom, left:right] = True
    return mask_hw


@pytest.mark.parametrize(
    ("shown", "target", "steps"),
    [
        (boxes((10, 10, 40, 40)), boxes((10, 10, 40, 40)), {}),
        (boxes((10, 10, 46, 40)), boxes((10, 10, 40, 40)), {"edit": 1, "drag": 2}),
        # A bump that is not there: of its four vertices two go and two are dragged flat, which costs as much as four.
        (boxes((10, 10, 40, 40), (20, 40, 26, 46)), boxes((10, 10, 40, 40)), {"edit": 1, "remove": 2, "drag": 2}),
        # A part too many is taken off with its cut, one too few is added with it.
        (boxes((5, 5, 40, 40), (50, 50, 56, 56)), boxes((5, 5, 40, 40)), {"edit": 1, "remove": 6}),
        (boxes((5, 5, 40, 40)), boxes((5, 5, 40, 40), (50, 50, 56, 56)), {"edit": 1, "add": 6}),
    ],
)
def test_a_plan_takes_the_steps_of_a_person(shown: np.ndarray, target: np.ndarray, steps: dict[str, int]) -> None:
    plan = plan_vertices(ring_of(shown), ring_of(target), target, GoodOutline())
    assert plan.ends_good
    assert +plan.steps == Counter(steps)


masks = st.lists(
    st.tuples(st.integers(2, 40), st.integers(2, 40), st.integers(4, 17), st.integers(4, 17)), min_size=1, max_size=3
).map(lambda parts: boxes(*((x, y, x + w, y + h) for x, y, w, h in parts)))


@settings(max_examples=60)
@given(shown=masks, target=masks, practised=st.booleans())
def test_every_plan_ends_good(shown: np.ndarray, target: np.ndarray, practised: bool) -> None:
    good = GoodOutline(practised=practised)
    plan = plan_vertices(ring_of(shown), ring_of(target), target, good)
    assert plan.ends_good
    assert (not plan.steps) == good.accepts(target, polygons_to_mask(split_ring(ring_of(shown)), SIDE, SIDE))


def test_an_outline_that_no_plan_makes_good_is_said() -> None:
    """The vertices that a person would click are those of another object."""
    target, elsewhere = boxes((10, 10, 40, 40)), boxes((20, 20, 55, 55))
    assert not plan_vertices(ring_of(elsewhere), ring_of(elsewhere), target, GoodOutline()).ends_good


def test_good_asks_for_both_overlap_and_nearness() -> None:
    target, good = boxes((10, 10, 50, 50)), GoodOutline()
    spike = boxes((10, 10, 50, 50), (50, 30, 55, 31))
    assert good.accepts(target, target)
    assert not good.accepts(target, spike)  # IoU is reached, the tip is 5 px off
    assert not good.accepts(target, boxes((10, 10, 47, 50)))  # 3 px off, IoU is not reached
    assert good.accepts(target, spike, ignored_hw=spike ^ target)
    assert not good.accepts(target, np.zeros_like(target))
    assert len(Target(target).difference(spike, good).far_px) > 0


def test_a_stretch_is_turned_into_another_with_the_fewest_actions() -> None:
    shown = np.array([[0.0, 0], [5, 0], [10, 0]])
    places = np.array([[0.0, 1], [10, 1]])
    never, ever = np.zeros(3, bool), np.ones(3, bool)
    behind = np.array([0, 1, 2])
    run, steps = cheapest_stretch(shown, places, np.full(3, 6.0), never, behind)
    assert steps == Counter(drag=2, remove=1)
    np.testing.assert_array_equal(run, places)
    run, steps = cheapest_stretch(shown, places, np.zeros(3), ever, behind)
    assert steps == Counter(add=2)
    np.testing.assert_array_equal(run, [[0, 0], [0, 1], [5, 0], [10, 1], [10, 0]])
    assert actions_of(steps) == 4
