"""The pieces of the refinement against definitions nobody here wrote, or worked out by hand.

An instance is read as several interleaved sequences: every place once, the whole in one when the limit allows.
"""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import roi_align

from model.config import find_config, get_config
from model.mask_head.encoder_layers import SelfAttention, attend, attend_padded
from model.mask_head.quadtree import Nodes, nodes_of
from model.mask_head.refiner import NodeCues, QuadtreeRefinement, SequenceRefiner, position_table, sequence_order
from model.mask_head.roi_features import BRANCH_TILE, RefinementPooler, add_branch
from tests.model.mask_head.test_paper_preset import built, pooled


def all_nodes(rois: int, size: int) -> Nodes:
    return Nodes(*torch.nonzero(torch.ones(rois, size, size), as_tuple=True))


BOXES = [
    (3.0, 5.0, 60.0, 44.0),  # inside
    (-40.0, -9.0, 30.0, 20.0),  # over the left and top edges
    (100.0, 60.0, 190.0, 140.0),  # over the right and bottom edges
    (10.0, 10.0, 10.5, 90.0),  # half a pixel wide
    (0.0, 0.0, 128.0, 96.0),  # the whole image
    (20.0, 20.0, 20.0, 20.0),  # empty
]


@pytest.mark.parametrize("size", [7, 28, 56])
def test_features_at_nodes_equal_dense_roi_align(size):
    torch.manual_seed(0)
    maps = [torch.randn(2, 8, 96 // stride, 128 // stride) for stride in (4, 8, 16, 32)]
    pooler = RefinementPooler(8, 14, (1 / 4, 1 / 8, 1 / 16, 1 / 32), 0)
    boxes = [Boxes(torch.tensor(BOXES)), Boxes(torch.tensor(BOXES[:3]) / 2)]
    pyramid = pooler(maps, boxes)
    nodes = all_nodes(len(pyramid.rois), size)
    [features] = pyramid.at([nodes], [size])
    for roi in range(len(pyramid.rois)):
        level = max(int(pyramid.levels[roi]) - 1, 0)
        dense = roi_align(pyramid.maps[level], pyramid.rois[roi : roi + 1], size, 1 / pyramid.strides[level], 0, True)
        expected = dense[0].permute(1, 2, 0).flatten(0, 1)
        torch.testing.assert_close(features[nodes.roi == roi], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("places", [[(0, 0, 0)], [(1, 84, 100)], [(0, 40, 50), (1, 0, 101), (1, 84, 0), (1, 85, 101)]])
def test_a_branch_in_tiles_equals_the_whole_one_where_it_is_read(places):
    torch.manual_seed(0)
    branch = RefinementPooler(8, 14, (1 / 4,), 0).conv_norm_relus_semantic
    for layer in branch[::2]:
        nn.init.normal_(layer.bias)
    feature = torch.randn(2, 8, 86, 102)  # no multiples of a tile
    cells = torch.tensor([(n * 86 + y) * 102 + x for n, y, x in places])
    with torch.inference_mode():
        tiled, whole = add_branch(branch, feature, cells), feature + branch(feature)
    for n, y, x in places:
        rows, columns = (slice(k // BRANCH_TILE * BRANCH_TILE, (k // BRANCH_TILE + 1) * BRANCH_TILE) for k in (y, x))
        torch.testing.assert_close(tiled[n, :, rows, columns], whole[n, :, rows, columns], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(tiled, whole), "so few cells need no whole branch"
    with torch.inference_mode():
        torch.testing.assert_close(add_branch(branch, feature, torch.arange(2 * 86 * 102)), whole)


def test_features_at_nodes_have_gradients_of_dense_roi_align():
    torch.manual_seed(0)
    dense_map = torch.randn(1, 4, 24, 32, dtype=torch.float32, requires_grad=True)
    pooler = RefinementPooler(4, 14, (1 / 4,), 0)
    nn.init.zeros_(pooler.conv_norm_relus_semantic[6].weight)
    nn.init.zeros_(pooler.conv_norm_relus_semantic[6].bias)
    box = torch.tensor([[3.0, 5.0, 100.0, 84.0]])
    pooler.pooler.min_level = pooler.pooler.max_level = 2
    [features] = pooler([dense_map], [Boxes(box)]).at([all_nodes(1, 28)], [28])
    weight = torch.randn_like(features)
    (ours,) = torch.autograd.grad((features * weight).sum(), dense_map)
    rois = torch.cat([torch.zeros(1, 1), box], 1)
    dense = roi_align(dense_map, rois, 28, 0.25, 0, True)[0].permute(1, 2, 0).flatten(0, 1)
    (expected,) = torch.autograd.grad((dense * weight).sum(), dense_map)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_attention_equals_torch_multihead_attention_for_each_sequence():
    torch.manual_seed(0)
    lengths, channels = [5, 1, 9], 16
    ours = SelfAttention(channels, heads=4, dropout=0.0)
    reference = nn.MultiheadAttention(channels, 4)
    reference.load_state_dict(ours.state_dict())
    tokens, positions = torch.randn(15, channels), torch.randn(15, channels)
    attended = ours(tokens, positions, lengths)
    for part, place, result in zip(*(t.split(lengths) for t in (tokens, positions, attended)), strict=True):
        expected, _ = reference((part + place)[:, None], (part + place)[:, None], part[:, None])
        torch.testing.assert_close(result, expected[:, 0])


def test_padded_attention_equals_one_by_one():
    torch.manual_seed(0)
    mixed, lengths = torch.randn(15, 3, 4, 4), [5, 1, 9]
    torch.testing.assert_close(attend_padded(*mixed.unbind(1), lengths), attend(*mixed.unbind(1), lengths))


@pytest.mark.parametrize("max_tokens", [1, 7, 1000])
def test_chunks_change_nothing(max_tokens):
    torch.manual_seed(0)
    refiner = SequenceRefiner(8, layers=2, heads=2, ffn_dim=16, dropout=0.0, max_tokens=1000).eval()
    cues, lengths = NodeCues(torch.randn(15, 8), torch.rand(15), torch.randn(15, 8)), [5, 1, 9]
    expected = refiner(cues, lengths)
    refiner.max_tokens = max_tokens
    torch.testing.assert_close(refiner(cues, lengths), expected)


def test_a_residual_decoder_begins_with_the_coarse_mask_and_can_correct_the_surest():
    torch.manual_seed(0)
    refiner = SequenceRefiner(8, layers=1, heads=2, ffn_dim=16, dropout=0.0, decoder="residual")
    coarse = torch.tensor([0.0, 0.1, 0.5, 0.7, 1.0])
    refined = refiner(NodeCues(torch.randn(5, 8), coarse, torch.randn(5, 8)), [3, 2])
    sure = 1 / (1 + math.exp(-4))
    torch.testing.assert_close(refined, torch.tensor([1 - sure, 0.1, 0.5, 0.7, sure]))
    refined.sum().backward()
    bias = refiner.conv_r1[2].bias.grad.item()
    assert bias == pytest.approx(float((refined * (1 - refined)).sum().detach()))
    with pytest.raises(ValueError, match="DECODER must be one of"):
        SequenceRefiner(8, decoder="additive")


def test_position_table_by_hand():
    table = position_table(4, 8)
    y, x = 2, 3
    turn = 2 * math.pi / (4 + 1e-6)
    expected = [f(angle) for base in (y, x) for d in (1.0, 100.0) for f, angle in _sine_pair((base + 1) * turn / d)]
    torch.testing.assert_close(table[y, x], torch.tensor(expected))


def _sine_pair(angle: float) -> list[tuple]:
    return [(math.sin, angle), (math.cos, angle)]


def test_sequence_order_groups_by_roi_and_keeps_the_order_of_parts():
    order = sequence_order([torch.tensor([0, 0, 1]), torch.tensor([1, 2]), torch.tensor([0, 2])])
    assert order.tolist() == [0, 1, 5, 2, 3, 4, 6]


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


def test_an_image_without_foreground_trains_on(recorded):
    from tests.model.mask_head.test_parity import released_heads

    heads = released_heads(recorded, ENCODER_LAYERS=3).train()
    empty = Instances((64, 64))
    empty.proposal_boxes = Boxes(torch.zeros(0, 4))
    empty.gt_classes = torch.zeros(0, dtype=torch.int64)
    maps = [torch.randn(1, 256, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    with EventStorage():
        pyramid = heads.mask_pooler(maps, [empty.proposal_boxes])
        losses = heads.mask_head(pyramid, [empty])
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    parameters = [*heads.mask_head.named_parameters(), *heads.mask_pooler.named_parameters()]
    assert all(p.grad is not None for n, p in parameters), [n for n, p in parameters if p.grad is None]


def test_unknown_configuration_names_the_known_ones():
    with pytest.raises(FileNotFoundError, match="released/base"):
        find_config("relesed")


def test_unknown_key_is_an_error(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("VERSION: 2\nMODEL: {TRANSFINER: {LEVLE_SIZES: [28]}}\n")
    with pytest.raises(KeyError, match="LEVLE_SIZES"):
        get_config(path)
