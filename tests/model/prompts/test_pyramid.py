"""The finest map of a view's pyramid, cell by cell, beside the whole of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.mask_head.quadtree import Nodes
from model.prompts.pyramid import ROOT_MAP, STRIDES, FinestMap, ViewFeatures, ViewPyramid

CHANNELS = 8
SIDE = 128


@pytest.fixture(scope="module")
def features() -> list[Tensor]:
    torch.manual_seed(0)
    widths = (32, 64, 128, 256, 512)
    return [torch.randn(2, width, SIDE >> k, SIDE >> k) for k, width in enumerate(widths)]


@pytest.fixture(scope="module")
def pyramid() -> ViewPyramid:
    torch.manual_seed(1)
    return ViewPyramid(CHANNELS).eval()


def view_features(maps: list[Tensor], finest: FinestMap | None) -> ViewFeatures:
    rois = torch.tensor([[0.0, 0.0, 0.0, 256.0, 256.0], [1.0, 0.0, 0.0, 256.0, 256.0]])
    levels = torch.full((2,), ROOT_MAP)
    return ViewFeatures(maps[2], None, maps, rois, levels, list(STRIDES), finer_by=0, finest=finest)


@pytest.fixture(scope="module")
def both(features: list[Tensor], pyramid: ViewPyramid) -> tuple[ViewFeatures, ViewFeatures]:
    """Features with the whole finest map, and those that compute its cells when they are read."""
    with torch.no_grad():
        maps, finest = pyramid(features)
        return view_features([finest.whole(), *maps[1:]], None), view_features(maps, finest)


def test_nodes_and_their_neighbours_read_what_the_whole_map_holds(both: tuple[ViewFeatures, ViewFeatures]) -> None:
    whole, by_cell = both
    assert whole.finest is None
    assert by_cell.finest is not None
    ends = torch.tensor([0, 0, 1, 63, 127, 127, 64])
    finest_nodes = Nodes(torch.tensor([0, 0, 0, 1, 1, 1, 1]), ends, ends.flip(0))
    root_nodes = Nodes(torch.tensor([0, 1]), torch.tensor([0, 63]), torch.tensor([5, 63]))
    for levels in ([root_nodes, finest_nodes], [root_nodes.neighbourhood(), finest_nodes.neighbourhood()]):
        for expected, actual in zip(whole.at(levels, [64, SIDE]), by_cell.at(levels, [64, SIDE]), strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_no_finest_node_costs_no_cell(both: tuple[ViewFeatures, ViewFeatures]) -> None:
    none, root_nodes = torch.zeros(0, dtype=torch.int64), Nodes(*torch.tensor([[0], [3], [4]]))
    assert [len(rows) for rows in both[1].at([root_nodes, Nodes(none, none, none)], [64, SIDE])] == [1, 0]


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_projection_of_all_cells_equals_that_of_the_whole_map(
    both: tuple[ViewFeatures, ViewFeatures], outputs: int
) -> None:
    weight = torch.randn(outputs, CHANNELS, 1, 1)
    with torch.no_grad():
        whole, by_cell = (features.project(weight).dense(1, SIDE) for features in both)
    torch.testing.assert_close(by_cell, whole, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_whole_map(features: list[Tensor], pyramid: ViewPyramid) -> None:
    nodes = Nodes(torch.tensor([0, 1]), torch.tensor([0, 64]), torch.tensor([127, 3])).neighbourhood()
    none = torch.zeros(0, dtype=torch.int64)
    weight = torch.randn(1, CHANNELS, 1, 1)
    gradients = []
    for is_whole in (True, False):
        maps, finest = pyramid(features)
        rows = view_features([finest.whole(), *maps[1:]], None) if is_whole else view_features(maps, finest)
        read = rows.at([Nodes(none, none, none), nodes], [64, SIDE])[1]
        loss = read.square().sum() + rows.project(weight).dense(1, SIDE).square().mean()
        gradients.append(torch.autograd.grad(loss, [*pyramid.lateral[0].parameters(), *pyramid.smooth[0].parameters()]))
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-4)


def test_the_whole_map_is_computed_where_it_is_asked_for(both: tuple[ViewFeatures, ViewFeatures]) -> None:
    with torch.no_grad():
        torch.testing.assert_close(both[1].dense(1, SIDE), both[0].maps[0])
