"""Views, targets, class rows and the score at which objects are shown: geometry and arithmetic, without a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.detectors.nanodet import INPUT_SIZE, STRIDES
from training.fewshot.learn import score_power
from training.fewshot.learner import (
    Cells,
    ClassRows,
    DetectorOutput,
    cell_levels,
    fit_rows,
    similar_classes,
    training_cells,
    views_of_image,
)
from training.snapshots.format import encode_rle

BOX = np.array([[40.0, 30.0, 120.0, 90.0]])


def test_views_carry_boxes_with_their_pixels() -> None:
    image = np.zeros((180, 240, 3), np.uint8)
    image[30:90, 40:120] = 255
    for view in views_of_image(image, BOX, 6, np.random.default_rng(0)):
        assert view.pixels.shape == (1, 3, INPUT_SIZE, INPUT_SIZE)
        left, top, right, bottom = view.boxes_xyxy[0].tolist()
        bright = view.pixels[0].mean(0) > 180
        inside = bright[int(top) + 4 : int(bottom) - 4, int(left) + 4 : int(right) - 4]
        assert inside.float().mean() > 0.95
        assert bright.sum() == pytest.approx((right - left) * (bottom - top), rel=0.15, abs=400)


def test_an_image_without_objects_has_views_too() -> None:
    views = list(views_of_image(np.zeros((50, 70, 3), np.uint8), np.zeros((0, 4)), 4, np.random.default_rng(1)))
    assert [len(view.boxes_xyxy) for view in views] == [0] * 4


def _output(boxes: torch.Tensor) -> DetectorOutput:
    count = len(cell_levels(INPUT_SIZE))
    every = torch.zeros(count, 4)
    every[: len(boxes)] = boxes
    scores = torch.zeros(count, 3)
    scores[: len(boxes)] = 0.5
    return DetectorOutput(torch.zeros(count, 128), every, scores)


def test_targets_are_overlaps_and_unclear_cells_weigh_nothing() -> None:
    image = np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    view = next(iter(views_of_image(image, np.array([[100.0, 100.0, 200.0, 200.0]]), 1, np.random.default_rng(0))))
    boxes = torch.tensor([[100.0, 100, 200, 200], [100, 100, 200, 150], [100, 100, 180, 140], [300, 300, 400, 400]])
    torch.manual_seed(0)
    cells = training_cells(_output(boxes), view, torch.tensor([1]), 2, torch.Generator().manual_seed(0))
    assert cells.targets.max(0).values.tolist() == [0.0, 1.0]
    assert sorted(cells.targets[cells.targets > 0].tolist()) == pytest.approx([0.32, 0.5, 1.0])
    hidden = type(view)(view.pixels, view.boxes_xyxy, torch.tensor([False]))
    cells = training_cells(_output(boxes), hidden, torch.tensor([1]), 2, torch.Generator().manual_seed(0))
    assert (cells.targets == 0).all(), "an object that nobody can see teaches nothing"
    assert (cells.weights[:, 1] == 0).sum() >= 3, "and is no background"
    assert (cells.weights[:, 0] == 1).all()


def _cells(count: int = 400) -> Cells:
    """Two classes: the first where feature 0 is high, the second nowhere."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, 128, generator=generator)
    targets = torch.zeros(count, 2)
    targets[:, 0] = (features[:, 0] > 1).float() * 0.9
    scores = torch.zeros(count, 3)
    scores[:, 2] = (features[:, 0] > 1).float()
    level = torch.arange(count) % len(STRIDES)
    return Cells(features.half(), level, scores.half(), targets, torch.ones(count, 2))


def test_rows_learn_a_class_and_leave_alone_what_has_no_objects() -> None:
    cells = _cells()
    start = ClassRows(
        torch.randn(3, 2, 128, generator=torch.Generator().manual_seed(1)) * 0.01, torch.full((3, 2), -2.0)
    )
    rows = fit_rows(cells, start)
    scores = rows.logits(cells.features, cells.level).sigmoid()
    objects = cells.targets[:, 0] > 0
    assert scores[objects, 0].mean() > 0.6
    assert scores[~objects, 0].mean() < 0.2
    assert torch.equal(rows.weight[:, 1], start.weight[:, 1])
    assert torch.equal(rows.bias[:, 1], start.bias[:, 1])


def test_a_new_class_starts_from_the_known_one_that_answers_to_it() -> None:
    assert similar_classes(_cells(), [None, 1]) == [2, 1]


def _mask(left: int) -> dict:
    mask = np.zeros((10, 40), bool)
    mask[2:8, left : left + 6] = True
    return encode_rle(mask)


TRUTH = [("cat", _mask(0)), ("cat", _mask(10))]


@pytest.mark.parametrize(
    ("detections", "threshold"),
    [
        ([["cat", 0.9, _mask(0)], ["cat", 0.8, _mask(10)], ["cat", 0.6, _mask(20)]], 0.7),
        ([["cat", 0.9, _mask(0)], ["dog", 0.8, _mask(10)], ["cat", 0.4, _mask(30)]], 0.85),
        ([["cat", 0.9, _mask(0)], ["cat", 0.8, _mask(0)], ["cat", 0.5, _mask(10)], ["cat", 0.3, _mask(30)]], 0.4),
        ([["cat", 0.9, _mask(20)]], 0.5),
        ([], 0.5),
    ],
    ids=["between right and wrong", "another class is wrong", "a double is wrong", "nothing right", "nothing"],
)
def test_one_half_is_where_right_and_wrong_part(detections: list, threshold: float) -> None:
    assert threshold ** score_power([(detections, TRUTH)]) == pytest.approx(0.5)
