"""A budget of nodes: spent per image, coarse before fine, and adding only when it grows; small boxes stay coarse."""

from __future__ import annotations

from dataclasses import replace

import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.mask_head.quadtree import Nodes, nodes_of
from model.mask_head.selection import RefinementSettings, node_limit, rois_to_refine, trust_in_refinement, within_budget

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
    kept = within_budget(levels, grids, scores, images, budget)
    for image in range(2):
        total = sum(int((images[n.roi] == image).sum()) for n in levels)
        assert sum(int((images[n.roi] == image).sum()) for n in kept) == min(total, budget)
    assert places(kept) <= places(within_budget(levels, grids, scores, images, budget + 7)) <= places(levels)


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
    kept = within_budget(levels, [], scores, images, 3)
    assert sum(len(n) for n in kept) == 3
    assert set(kept[0].roi.tolist()) == {int(scores.argmax())}


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
    batch, chosen = [detections(10, 70, 56), detections(55, 90)], torch.tensor([0, 1, 2, 3, 4])
    limit = node_limit(batch, chosen, 4)
    assert limit is not None
    kept = limit(levels, grids)
    assert sum(len(n) for n in kept) == 8
    assert node_limit(batch, chosen, 0) is None
