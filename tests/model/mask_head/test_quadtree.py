"""The quadtree: which places are nodes, the budget of nodes, the nodes drawn in training, and the way back to a mask.

A budget is spent per image, coarse before fine, and only adds when it grows; small boxes stay coarse.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.mask_head.quadtree import (
    Nodes,
    RefinementSettings,
    boundary_uncertainty,
    node_limit,
    nodes_of,
    propagate,
    rois_to_refine,
    sample_nodes,
    select_incoherent_regions,
    trust_in_refinement,
    within_budget,
)

SIZES = (4, 8)


def drawn(seed: int, rois: int) -> tuple[list[Nodes], list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    grids = [torch.rand(rois, size, size, generator=generator) for size in SIZES]
    return [nodes_of(grid > 0.5) for grid in grids], grids, torch.rand(rois, generator=generator)


def places(levels: list[Nodes]) -> set[tuple[int, ...]]:
    rows = zip(*(torch.cat([getattr(n, field) for n in levels]).tolist() for field in ("roi", "y", "x")), strict=True)
    depth = [d for d, n in enumerate(levels) for _ in range(len(n))]
    return {(d, *row) for d, row in zip(depth, rows, strict=True)}


@given(st.integers(0, 9999), st.integers(1, 5), st.integers(1, 200))
def test_each_image_gets_its_budget_and_more_only_adds(seed: int, rois: int, budget: int) -> None:
    levels, grids, scores = drawn(seed, rois)
    images = torch.arange(rois) % 2
    limited = within_budget(levels, grids, scores, images, budget)
    for image in range(2):
        total = sum(int((images[n.roi] == image).sum()) for n in levels)
        assert sum(int((images[n.roi] == image).sum()) for n in limited) == min(total, budget)
    assert places(limited) <= places(within_budget(levels, grids, scores, images, budget + 7)) <= places(levels)


@given(st.integers(0, 9999), st.integers(1, 60))
def test_other_images_of_the_batch_change_nothing(seed: int, budget: int) -> None:
    levels, grids, scores = drawn(seed, 3)
    images = torch.tensor([0, 1, 1])
    together = within_budget(levels, grids, scores, images, budget)
    alone = within_budget(
        [n.select(n.roi == 0) for n in levels], [g[:1] for g in grids], scores[:1], images[:1], budget
    )
    assert places([n.select(n.roi == 0) for n in together]) == places(alone)


def test_coarse_places_go_before_fine_ones_and_confident_instances_before_doubtful_ones() -> None:
    levels = [Nodes(*torch.tensor([[0, 1], [0, 0], [0, 0]])), Nodes(*torch.tensor([[0, 1], [1, 1], [1, 1]]))]
    grids = [torch.ones(2, size, size) for size in SIZES]
    scores, images = torch.tensor([0.6, 0.9]), torch.tensor([0, 0])
    order = [places(within_budget(levels, grids, scores, images, budget)) for budget in (1, 2, 3, 4)]
    first, second, third, all_four = order
    assert first == {(0, 1, 0, 0)}
    assert second - first == {(0, 0, 0, 0)}
    assert third - second == {(1, 1, 1, 1)}
    assert len(all_four) == 4


def test_no_budget_is_no_limit_and_undetected_regions_go_by_score_and_depth() -> None:
    levels, _, scores = drawn(0, 2)
    images = torch.zeros(2, dtype=torch.int64)
    assert within_budget(levels, [], scores, images, 0) is levels
    remaining = within_budget(levels, [], scores, images, 3)
    assert sum(len(n) for n in remaining) == 3
    assert set(remaining[0].roi.tolist()) == {int(scores.argmax())}


def detections(*edges_px: float) -> Instances:
    boxes = Boxes(torch.tensor([[0.0, 0.0, edge, edge] for edge in edges_px]))
    count = len(edges_px)
    return Instances(
        (99, 99), pred_boxes=boxes, pred_classes=torch.zeros(count, dtype=torch.int64), scores=torch.ones(count)
    )


def test_small_boxes_and_those_beyond_the_limit_are_left_out() -> None:
    batch = [detections(10, 70, 56), detections(55, 90)]
    settings = RefinementSettings(test_min_box_px=56.0)
    assert rois_to_refine(batch, settings).tolist() == [1, 2, 4]
    assert rois_to_refine(batch, replace(settings, test_instance_limit=2)).tolist() == [1]
    assert rois_to_refine(batch, RefinementSettings()).tolist() == [0, 1, 2, 3, 4]


def test_a_refined_mask_counts_less_in_a_small_box() -> None:
    batch = [detections(40, 80), detections(160, 300)]
    trust = trust_in_refinement(batch, RefinementSettings(test_sure_box_px=160.0))
    torch.testing.assert_close(trust, torch.tensor([0.0625, 0.25, 1.0, 1.0]))
    assert trust_in_refinement(batch, RefinementSettings()).tolist() == [1.0] * 4


def test_the_budget_of_a_batch_is_an_image_s_own() -> None:
    levels, grids, _ = drawn(3, 5)
    batch, roi_indices = [detections(10, 70, 56), detections(55, 90)], torch.tensor([0, 1, 2, 3, 4])
    limit = node_limit(batch, roi_indices, 4)
    assert limit is not None
    limited = limit(levels, grids)
    assert sum(len(n) for n in limited) == 8
    assert node_limit(batch, roi_indices, 0) is None


def test_each_level_has_its_own_threshold_and_children_need_a_parent():
    coarse = torch.tensor([[[0.9, 0.2], [0.0, 0.5]]])
    fine = torch.full((1, 4, 4), 0.7)
    first, second = (nodes_of(r) for r in select_incoherent_regions([coarse, fine], (0.2, 0.6)))
    assert list(zip(first.y.tolist(), first.x.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 1)]
    assert len(second) == 16
    nested = select_incoherent_regions([coarse, fine], (0.2, 0.6), nested=True)[1]
    assert nested.sum() == 12
    assert not nested[0, 2:, :2].any()
    dilated = select_incoherent_regions([coarse, fine], (0.6, 0.8), dilate_finest=True)[1]
    assert not dilated.any()


def test_sampling_repeats_when_short_and_leaves_out_thin_rois():
    grid = torch.zeros(2, 4, 4)
    grid[0, 0, :3] = 1
    grid[1, 2, 2] = 1
    levels = [nodes_of(grid > 0.5)]
    remaining, [sampled] = sample_nodes(levels, 2, count=7, minimum=2, permutation=torch.arange)
    assert remaining.tolist() == [0]
    assert sampled.x.tolist() == [0, 1, 2, 0, 1, 2, 0]
    remaining, [sampled] = sample_nodes(levels, 2, count=2, minimum=1, permutation=torch.arange)
    assert remaining.tolist() == [0, 1]
    assert sampled.roi.tolist() == [0, 0, 1, 1]


def test_centred_propagation_keeps_places_where_they_are():
    """A ramp over the view stays that ramp on the finer level; the released code's is stretched towards the corners."""
    centres = {side: (torch.arange(side) + 0.5) / side for side in (8, 16)}
    coarse = centres[8].expand(1, 8, 8).contiguous()
    empty = Nodes(*torch.zeros(3, 0, dtype=torch.long))
    masks = {
        how: propagate(coarse, [empty, empty], [torch.zeros(0)] * 2, [8, 16], how) for how in ("centred", "bilinear")
    }
    inner = slice(1, -1)  # beyond the last centres there is nothing to interpolate
    torch.testing.assert_close(masks["centred"][0, 5, inner], centres[16][inner])
    assert (masks["bilinear"][0, 5, inner] - centres[16][inner]).abs().max() > 0.01


def test_propagation_writes_every_level_and_leaves_the_coarse_mask_alone():
    coarse = torch.full((1, 2, 2), 0.25)
    root = Nodes(torch.tensor([0]), torch.tensor([0]), torch.tensor([1]))
    leaf = Nodes(torch.tensor([0]), torch.tensor([3]), torch.tensor([0]))
    mask = propagate(coarse, [root, leaf], [torch.tensor([1.0]), torch.tensor([0.0])], [2, 4])
    # align_corners: the row between the corners 0.25 and 1 is linear.
    torch.testing.assert_close(mask[0, 0], torch.tensor([0.25, 0.5, 0.75, 1.0]))
    assert mask[0, 3, 0] == 0
    assert (coarse == 0.25).all()


def test_uncertainty_reads_the_finest_level_that_has_nodes():
    first, second = torch.tensor([0, 1]), torch.tensor([0, 0])
    levels = [Nodes(first, first * 0, first * 0), Nodes(second, second, second)]
    values = [torch.tensor([1.0, 0.5]), torch.tensor([0.5, 1.0])]
    assert boundary_uncertainty(levels, values, 3).tolist() == [0.5, 1.0, 0.0]
