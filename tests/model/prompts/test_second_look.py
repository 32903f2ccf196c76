"""A second look at large objects, with a network that sees brightness: windows are put together without seams."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.prompts.answers import Prompt, look, mask_of_view
from model.prompts.second_look import FINER, is_large, look_twice, second_look, windows_of
from model.prompts.views import view_of_box

CPU = torch.device("cpu")
SIDE = 128


class Brightness:
    """Answers each view with its brightness on 128 x 128 places, the coarse mask without its fine detail."""

    def __init__(self) -> None:
        self.views = 0
        self.masks = list[torch.Tensor]()

    def predict(self, views, maps, *, refine=True):
        self.views += len(views)
        self.masks += list(maps[:, 3])
        values = F.adaptive_avg_pool2d(views.mean(1, keepdim=True) / 255, SIDE)
        coarse = F.interpolate(F.avg_pool2d(values, 4), SIDE, mode="bilinear")[:, 0]
        return (values[:, 0] if refine else coarse), coarse, torch.full((len(views),), 0.5)


def star(size: int, rays: int) -> np.ndarray:
    """A bright star on black, uint8 size x size x 3."""
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    shape = radius < size * (0.3 + 0.12 * np.cos(rays * angle))
    return np.repeat((shape * 255).astype(np.uint8)[:, :, None], 3, 2)


def test_a_large_object_is_drawn_finer_than_in_one_look() -> None:
    image, network = star(900, 40), Brightness()
    truth = image[:, :, 0] > 0
    view = view_of_box((80, 80, 820, 820), 256)
    prompt = Prompt(box_xyxy=(80.0, 80.0, 820.0, 820.0))
    single_look = look(network, image, [view], [prompt], device=CPU)[0][0]
    (twice,), (coarse,), scores = look_twice(network, image, [view], [prompt], device=CPU)
    assert twice.shape == coarse.shape == (FINER * SIDE, FINER * SIDE)
    assert scores.tolist() == [0.5]
    wrong = [np.count_nonzero(mask_of_view(view, values, truth.shape) != truth) for values in (single_look, twice)]
    assert wrong[1] < 0.75 * wrong[0], wrong


def test_windows_know_the_mask_so_far_and_nothing_else() -> None:
    image, network = star(600, 5), Brightness()
    view = view_of_box((100, 100, 500, 500), 256)
    values = np.zeros((1, SIDE, SIDE), np.float32)
    values[0, 40:90, 40:90] = 0.9
    second_look(network, image, [view], values, device=CPU)
    assert len(network.masks) == 4
    for mask, window in zip(network.masks, windows_of(view), strict=True):
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        x0, y0, x1, y1 = window.box_xyxy
        a, b, c, d = view.box_xyxy
        drawn = mask_of_view(view, values[0], image.shape[:2])[int(y0) : int(y1), int(x0) : int(x1)]
        assert mask.mean() == pytest.approx(drawn.mean(), abs=0.02), (a, b, c, d)


@pytest.mark.parametrize("value", [0.0, 0.9])
def test_where_no_outline_is_nothing_is_looked_at(value: float) -> None:
    network = Brightness()
    values = np.full((1, SIDE, SIDE), value, np.float32)
    refined, coarse = second_look(network, star(600, 5), [view_of_box((0, 0, 600, 600), 256)], values, device=CPU)
    assert network.views == 0
    assert (refined == np.float32(value)).all()
    assert (coarse == refined).all()


def test_small_objects_and_those_not_worth_it_are_looked_at_once() -> None:
    image, network = star(700, 8), Brightness()
    boxes = [(10.0, 10.0, 60.0, 60.0), (50.0, 50.0, 650.0, 650.0), (60.0, 60.0, 640.0, 640.0)]
    views, prompts = [view_of_box(box, 256) for box in boxes], [Prompt(box_xyxy=box) for box in boxes]
    assert [is_large(view) for view in views] == [False, True, True]
    refined, _, _ = look_twice(network, image, views, prompts, device=CPU, may_repeat=[True, True, False])
    assert [grid.shape[0] // SIDE for grid in refined] == [1, FINER, 1]
    assert network.views == 3 + 4


def test_windows_cover_their_view_and_join_without_a_seam() -> None:
    image, network = np.full((500, 500, 3), 200, np.uint8), Brightness()
    view = view_of_box((50, 50, 450, 450), 256, margin=1.0)
    values = np.zeros((1, SIDE, SIDE), np.float32)
    values[0, 30:100, 30:100] = 1.0
    refined, _ = second_look(network, image, [view], values, device=CPU)
    assert np.allclose(refined, 200 / 255, atol=0.01)
