"""Class-wise layers when classes come, go, move and change their names; by hand on two or three classes."""

from __future__ import annotations

import pytest
import torch

from training.finetune.finetune import describe, fit_classes, previous_names

SCORES = "roi_heads.box_predictor.cls_score.weight"
BOXES = "roi_heads.box_predictor.bbox_pred.bias"
STAGE = "roi_heads.box_predictor.2.cls_score.bias"
MASKS = "roi_heads.mask_head.predictor.weight"


@pytest.mark.parametrize(
    ("old", "new", "new_names", "expected"),
    [
        (("a", "b"), ("b", "a"), {}, ("b", "a")),  # another order
        (("a", "b"), ("a", "b", "c"), {}, ("a", "b", None)),  # one more
        (("a", "b"), ("b",), {}, ("b",)),  # one less
        (("a", "b"), ("b", "c"), {"a": "c"}, ("b", "a")),  # a is called c now
        (("a", "b"), ("a", "b"), {"a": "b"}, (None, "a")),  # a is called b now, and a new a came
        (("a",), ("x", "y"), {}, (None, None)),  # nothing is left
    ],
)
def test_rows_follow_names(
    old: tuple[str, ...], new: tuple[str, ...], new_names: dict[str, str], expected: tuple[str | None, ...]
) -> None:
    assert previous_names(old, new, new_names) == expected


@pytest.mark.parametrize(
    ("new_names", "message"),
    [
        ({"wheel": "a"}, "cannot rename wheel: the model's classes are a, b"),
        ({"a": "wheel"}, "cannot rename to wheel: the classes to learn are a, c"),
        ({"a": "c", "b": "c"}, "renamed to the same one"),
    ],
)
def test_renamings_that_do_not_fit_are_refused(new_names: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        previous_names(("a", "b"), ("a", "c"), new_names)


def test_kept_rows_are_exact_new_ones_typical_and_the_background_stays() -> None:
    state = {
        SCORES: torch.tensor([[1.0], [3.0], [-7.0]]),  # a, b, background
        BOXES: torch.arange(8.0),  # four numbers a class
        MASKS: torch.tensor([1.0, 5.0]).reshape(2, 1, 1, 1),
        "backbone.weight": torch.ones(2, 2),  # two rows that are no classes
    }
    expected = {SCORES: torch.zeros(4, 1), BOXES: torch.zeros(12), MASKS: torch.zeros(3, 1, 1, 1)}
    new_state = fit_classes(state, expected, 2, (1, None, 0))
    assert new_state[SCORES].flatten().tolist() == [3, 2, 1, -7]
    assert new_state[BOXES].tolist() == [4, 5, 6, 7, 2, 3, 4, 5, 0, 1, 2, 3]
    assert new_state[MASKS].flatten().tolist() == [5, 3, 1]
    assert new_state["backbone.weight"] is state["backbone.weight"]


def test_every_stage_of_a_cascade_changes_and_class_agnostic_layers_stay() -> None:
    boxes = "roi_heads.box_predictor.2.bbox_pred.weight"
    state = {STAGE: torch.tensor([1.0, 2.0, 9.0]), boxes: torch.ones(4, 3)}
    new_state = fit_classes(state, {STAGE: torch.zeros(2), boxes: torch.zeros(4, 3)}, 2, (1,))
    assert new_state[STAGE].tolist() == [2, 9]
    assert new_state[boxes] is state[boxes]


def test_the_change_is_told_in_a_line() -> None:
    line = describe(("a", "b", "d"), ("b", "c", "e"), ("b", "a", None))
    assert line == "kept: b; renamed: a to c; added: e; removed: d"
