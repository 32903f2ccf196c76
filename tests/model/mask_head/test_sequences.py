"""Reading an instance as several interleaved sequences: every place once, the whole in one when the limit allows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.mask_head.quadtree import Nodes, nodes_of
from model.mask_head.sequences import QuadtreeRefinement
from tests.model.mask_head.test_paper_preset import built, pooled


class Pyramid:
    """Stands for the features, which dealing nodes does not look at; remembers whose they are."""

    def select(self, index):
        self.owner = index
        return self


class Recorder(QuadtreeRefinement):
    """Answers each node with its place, and remembers the sequences."""

    def __init__(self) -> None:
        self.levels: list[Nodes] = []

    def __call__(self, pyramid, coarse, levels, rois, coarse_features=None):
        self.levels, self.rois, self.pyramid = levels, rois, pyramid
        return torch.empty(0), [n.y * 100.0 + n.x for n in levels]


def regions() -> list[torch.Tensor]:
    grids = [torch.zeros(3, size, size, dtype=torch.bool) for size in (4, 8)]
    grids[0][0], grids[1][0], grids[1][2, :2] = True, True, True  # 80, 0 and 16 nodes
    return grids


@pytest.mark.parametrize(("limit", "parts"), [(0, [1, 1, 1]), (1000, [1, 1, 1]), (30, [3, 1, 1]), (7, [12, 1, 3])])
def test_parts_cover_every_node_once(limit: int, parts: list[int]) -> None:
    levels = [nodes_of(region) for region in regions()]
    refine, pyramid = Recorder(), Pyramid()
    values = refine.in_parts(pyramid, torch.zeros(3, 4, 4), levels, limit)
    for nodes, value in zip(levels, values, strict=True):
        assert torch.equal(value, nodes.y * 100.0 + nodes.x)
    assert len(refine.rois) == sum(parts)
    if limit:
        owners = [roi for roi, count in enumerate(parts) for _ in range(count)]
        assert pyramid.owner.tolist() == owners
        for nodes, dealt in zip(levels, refine.levels, strict=True):
            assert torch.equal(pyramid.owner[dealt.roi], nodes.roi)
        lengths = torch.stack([nodes.counts(sum(parts)) for nodes in refine.levels]).sum(0)
        assert int(lengths.max()) <= limit + len(levels)


def test_nothing_detected_is_fine() -> None:
    levels = [nodes_of(torch.zeros(0, 4, 4, dtype=torch.bool))]
    assert [len(v) for v in Recorder().in_parts(Pyramid(), torch.zeros(0, 4, 4), levels, 5)] == [0]


def test_a_node_knows_what_the_coarse_mask_of_its_cell_was_predicted_from() -> None:
    heads = built({"CUES": ["feature", "coarse", "position", "coarse_feature"]})
    pyramid, _ = pooled(0)
    output = heads.mask_head.coarse(pyramid, torch.zeros(len(pyramid.rois), dtype=torch.long))
    side = output.logits.shape[-1]
    levels = [Nodes(torch.tensor([1]), torch.tensor([y]), torch.tensor([x])) for y, x in ((5, 7), (11, 14), (22, 29))]
    cues = heads.mask_head.refine._cues(pyramid, torch.rand(2, side, side), levels, output.upsampled)
    for level in cues:  # the three places lie in one coarse cell
        assert torch.equal(level.coarse_feature, output.upsampled[1, None, :, 5, 7])
    assert built({}).mask_head.coarse(pyramid, torch.zeros(2, dtype=torch.long)).upsampled is None


@pytest.mark.parametrize("cues", [("feature", "coarse", "position"), ("feature", "coarse", "coarse_feature")])
@torch.no_grad()
def test_company_changes_nothing(cues: tuple[str, ...]) -> None:
    """An instance's masks are the same whether or not one with more nodes is beside it."""
    from detectron2.structures import Boxes, Instances

    heads = built({"TEST_SEQUENCE_NODES": 200, "CUES": list(cues)}).eval()
    nn.init.normal_(heads.mask_head.encoder.conv_r1[2].weight)
    maps = {f"p{i}": torch.randn(1, 16, 64 // 2**i, 96 // 2**i) for i in (2, 3, 4, 5)}
    boxes = torch.tensor([[3.0, 5.0, 60.0, 44.0], [10.0, 2.0, 30.0, 61.0]])
    outputs = []
    for rows in ([0, 1], [1]):
        image = Instances((64, 96), pred_boxes=Boxes(boxes[rows]), pred_classes=torch.tensor([0, 2])[rows])
        heads._forward_mask(maps, [image])
        outputs.append(image.pred_masks[-1])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)
