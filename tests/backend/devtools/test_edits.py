"""The simulated annotator: counted by hand on small pictures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from backend.devtools.edit_plan import STEPS, GoodOutline
from backend.devtools.edits import EditableObject, Edits

SIDE = 100


def box(left: int, top: int, right: int, bottom: int, label: str = "key") -> EditableObject:
    mask_hw = np.zeros((SIDE, SIDE), bool)
    mask_hw[top:bottom, left:right] = True
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    return EditableObject(label, mask_hw, corners)


TRUTH = box(20, 20, 70, 60)
FAR = box(80, 80, 95, 95)


def corrected(*shown: EditableObject, truth: tuple[EditableObject, ...] = (TRUTH,)) -> Edits:
    edits = Edits()
    edits.add(shown, truth)
    return edits


CASES: dict[str, tuple[tuple[EditableObject, ...], tuple[EditableObject, ...], dict[str, int], dict[str, int]]] = {
    "nothing to do": ((TRUTH,), (TRUTH,), {}, {"untouched": 1}),
    "close enough": ((box(20, 20, 71, 60),), (TRUTH,), {}, {"untouched": 1}),
    "a miss": ((), (TRUTH,), {"draw": 1, "click": 5}, {"misses": 1}),
    "a wrong label": ((box(20, 20, 70, 60, "fork"),), (TRUTH,), {"relabel": 1}, {}),
    "a false region": ((TRUTH, FAR), (TRUTH,), {"delete": 1}, {"untouched": 1, "false": 1}),
    "a double": ((TRUTH, box(21, 20, 70, 60, "fork")), (TRUTH,), {"delete": 1}, {"doubles": 1, "false": 1}),
    "a part of the object beside it": (
        (TRUTH, box(30, 30, 40, 40)), (TRUTH,), {"delete": 1}, {"false": 1, "untouched": 0}
    ),
    "one side too far out": ((box(20, 20, 80, 60),), (TRUTH,), {"edit": 1, "drag": 2}, {"redrawn": 0}),
    "two objects, two regions": ((FAR, TRUTH), (TRUTH, FAR), {}, {"untouched": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_steps_are_those_a_person_would_take(name: str) -> None:
    shown, truth, steps, counts = CASES[name]
    edits = corrected(*shown, truth=truth)
    assert +edits.steps == Counter(steps)
    for name_of_count, count in counts.items():
        assert getattr(edits, name_of_count) == count
    assert edits.actions == sum(STEPS[step][0] * count for step, count in steps.items())
    assert edits.seconds == pytest.approx(sum(STEPS[step][1] * count for step, count in steps.items()))


def test_parts_and_sides_of_the_image_are_counted() -> None:
    at_left, beside = box(0, 20, 30, 60), box(2, 20, 30, 60)
    two = EditableObject("key", at_left.mask_hw | FAR.mask_hw, at_left.vertices_px)
    edits = corrected(two, truth=(at_left,))
    assert (edits.parts, edits.true_parts) == (2, 1)
    assert (edits.border, edits.border_reached) == (1, 1)
    assert corrected(beside, truth=(at_left,)).border_reached == 0


def test_what_is_worse_than_nothing_is_drawn_anew() -> None:
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    wild = np.stack([45 + 40 * np.cos(angle), 45 + 40 * np.sin(angle)], axis=1)
    region = EditableObject("key", np.hypot(*(np.mgrid[:SIDE, :SIDE] - 45)) < 40, wild)
    edits = corrected(region)
    assert edits.redrawn == 1
    assert +edits.steps == Counter({"delete": 1, "draw": 1, "click": 5})


def test_a_correction_never_costs_more_than_deleting_everything_and_drawing_anew() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        corners = rng.integers(0, 80, (4, 2))
        sizes = rng.integers(6, 40, (4, 2))
        boxes = [box(x, y, min(x + w, SIDE), min(y + h, SIDE)) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
        shown, truth = boxes[:2], boxes[2:]
        edits = corrected(*shown, truth=tuple(truth))
        anew = len(shown) * STEPS["delete"][0] + len(truth) * (STEPS["draw"][0] + 5)
        assert edits.actions <= anew
        assert edits.objects == len(truth)


def test_a_practised_annotator_drags_what_is_there_before_adding() -> None:
    """The tip of a spike lies farther off than a literal annotator drags."""
    blunt, spiked = box(20, 20, 60, 60), box(20, 20, 90, 60)
    literal, practised = Edits(), Edits()
    literal.add([blunt], [spiked])
    practised.add([blunt], [spiked], GoodOutline(practised=True))
    assert +literal.steps == Counter({"edit": 1, "add": 2})
    assert +practised.steps == Counter({"edit": 1, "drag": 2})


def test_a_lenient_rule_leaves_more_alone() -> None:
    region = box(20, 20, 75, 60)
    strict, lenient = Edits(), Edits()
    strict.add([region], [TRUTH])
    lenient.add([region], [TRUTH], GoodOutline(iou=0.85, distance_px=6))
    assert (strict.untouched, lenient.untouched) == (0, 1)
    assert lenient.as_dict()["actions_per_object"] == 0


def test_an_empty_set_has_figures() -> None:
    assert Edits().as_dict()["actions_per_object"] == 0
