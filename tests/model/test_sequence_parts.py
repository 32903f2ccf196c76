"""Reading an instance as several interleaved sequences: same places, the whole in one when the limit allows."""

from __future__ import annotations

import pytest
import torch

from model.quadtree import nodes_of
from model.quadtree_refinement import QuadtreeRefinement


class Recorder(QuadtreeRefinement):
    """Answers each node with its own number, and remembers how many nodes an RoI each sequence had."""

    def __init__(self) -> None:
        self.longest: list[int] = []

    def __call__(self, pyramid, coarse, levels, rois):
        counts = torch.stack([n.counts(len(coarse)) for n in levels]).sum(0)
        self.longest.append(max(counts.tolist(), default=0))
        return torch.empty(0), [n.roi * 10000.0 + n.y * 100 + n.x for n in levels]


@pytest.mark.parametrize(("limit", "sequences"), [(0, 1), (1000, 1), (30, 3), (7, 12)])
def test_parts_cover_every_node_once(limit: int, sequences: int) -> None:
    regions = [torch.zeros(3, size, size, dtype=torch.bool) for size in (4, 8)]
    regions[0][0], regions[1][0], regions[1][2, :2] = True, True, True  # 80, 0 and 16 nodes
    levels = [nodes_of(region) for region in regions]
    refine = Recorder()
    values = refine.in_parts(None, torch.zeros(3, 4, 4), levels, torch.arange(3), limit)
    for nodes, value in zip(levels, values, strict=True):
        assert torch.equal(value, nodes.roi * 10000.0 + nodes.y * 100 + nodes.x)
    assert len(refine.longest) == sequences
    assert limit == 0 or max(refine.longest) <= limit + len(levels)


def test_nothing_detected_is_fine() -> None:
    levels = [nodes_of(torch.zeros(0, 4, 4, dtype=torch.bool))]
    assert [len(v) for v in Recorder().in_parts(None, torch.zeros(0, 4, 4), levels, torch.arange(0), 5)] == [
        0
    ]
