"""The pieces of the refinement against definitions nobody here wrote, or worked out by hand."""

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
from model.mask_head.quadtree import Nodes, boundary_uncertainty, nodes_of, propagate, sample_nodes, sequence_order
from model.mask_head.refiner import NodeCues, SequenceRefiner, position_table
from model.mask_head.roi_features import BRANCH_TILE, RefinementPooler, add_branch
from model.mask_head.selection import select_incoherent_regions


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


def test_sequence_order_groups_by_roi_and_keeps_the_order_of_parts():
    order = sequence_order([torch.tensor([0, 0, 1]), torch.tensor([1, 2]), torch.tensor([0, 2])])
    assert order.tolist() == [0, 1, 5, 2, 3, 4, 6]


def test_sampling_repeats_when_short_and_leaves_out_thin_rois():
    grid = torch.zeros(2, 4, 4)
    grid[0, 0, :3] = 1
    grid[1, 2, 2] = 1
    levels = [nodes_of(grid > 0.5)]
    kept, [sampled] = sample_nodes(levels, 2, count=7, minimum=2, permutation=torch.arange)
    assert kept.tolist() == [0]
    assert sampled.x.tolist() == [0, 1, 2, 0, 1, 2, 0]
    kept, [sampled] = sample_nodes(levels, 2, count=2, minimum=1, permutation=torch.arange)
    assert kept.tolist() == [0, 1]
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
