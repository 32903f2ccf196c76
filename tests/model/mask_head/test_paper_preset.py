"""The paper's network: equation 1, the cascaded detector, figure 8, and every ablation as a setting."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from torch.nn import functional as F

import model.network  # noqa: F401
from model.config import get_config
from model.mask_head.incoherence import CascadedDetection, incoherent_regions, jitter
from model.mask_head.quadtree import Nodes, boundary_regions, double, nodes_of, propagate
from model.mask_head.roi_features import RefinementPooler


def equation_1(mask: torch.Tensor) -> torch.Tensor:
    """D = or-down(M xor up(down(M))), written out as the paper has it."""
    down = mask[:, ::2, ::2]
    different = mask ^ double(down)
    return F.max_pool2d(different[:, None].float(), 2)[:, 0] > 0


@given(arrays(bool, (2, 16, 16), elements=st.booleans()))
def test_regions_are_equation_1_on_every_level(array):
    mask = torch.from_numpy(array)
    coarse, middle, fine = incoherent_regions(mask, 3, nested=False)
    for region in (fine, middle, coarse):
        assert torch.equal(region, equation_1(mask))
        mask = mask[:, ::2, ::2]


@given(arrays(bool, (1, 16, 16), elements=st.booleans()))
def test_nested_regions_lie_within_their_parents(array):
    levels = incoherent_regions(torch.from_numpy(array), 3)
    for parent, child in pairwise(levels):
        assert not (child & ~double(parent)).any()


@pytest.mark.parametrize(
    ("mask", "coarse", "fine"),
    [
        (torch.zeros(1, 8, 8), 0, 0),
        (torch.ones(1, 8, 8), 0, 0),
        (torch.arange(64).reshape(1, 8, 8) % 2, 0, 16),  # stripes: lost by the first halving, uniform after it
        (torch.arange(8).expand(1, 8, 8) >= 4, 0, 0),  # a half plane on the grid of every level
        (torch.arange(8).expand(1, 8, 8) >= 5, 2, 4),  # off the grid by one
    ],
    ids=["empty", "full", "stripes", "aligned edge", "edge off the grid"],
)
def test_regions_by_hand(mask, coarse, fine):
    regions = incoherent_regions(mask.bool(), 2, nested=False)
    assert [int(region.sum()) for region in regions] == [coarse, fine]


def test_a_side_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="side 12 cannot be halved 3 times"):
        incoherent_regions(torch.zeros(1, 12, 12, dtype=torch.bool), 3)


def test_jitter_grows_by_one_place_and_only_where_drawn():
    region = torch.zeros(1, 8, 8, dtype=torch.bool)
    region[0, 4, 4] = True
    assert torch.equal(jitter([region], 0.0)[0], region)
    assert int(jitter([region], 1.0)[0].sum()) == 9


def test_figure_8_node_by_node():
    """Three levels; nodes 1..13: 1 is the root node; 2-5 its quadrants; 6-9 those of 2; 10-13 those of 5.

    Incoherent are {1, 2, 5, 7, 8, 10, 13}; leaves {3, 4, 6, 9, 11, 12} take their parents' values.
    """
    v = {n: n / 100 for n in (1, 2, 5, 7, 8, 10, 13)}
    levels = [node_list([(0, 0)]), node_list([(0, 0), (1, 1)]), node_list([(0, 1), (1, 0), (2, 2), (3, 3)])]
    values = [[v[1]], [v[2], v[5]], [v[7], v[8], v[10], v[13]]]
    coarse = torch.full((1, 1, 1), 0.9)
    mask = propagate(coarse, levels, [torch.tensor(x) for x in values], [1, 2, 4], "nearest")
    expected = torch.tensor(
        [
            [v[2], v[7], v[1], v[1]],  # 6 = 2, 7 | 3 = 1
            [v[8], v[2], v[1], v[1]],  # 8, 9 = 2
            [v[1], v[1], v[10], v[5]],  # 4 = 1 | 10, 11 = 5
            [v[1], v[1], v[5], v[13]],  # 12 = 5, 13
        ]
    )
    torch.testing.assert_close(mask[0], expected)
    only_leaves = propagate(coarse, levels, [torch.tensor(x) for x in values], [1, 2, 4], "leaves")
    assert (only_leaves == 0.9).sum() == 12


def node_list(places: list[tuple[int, int]]) -> Nodes:
    y, x = torch.tensor(places).T
    return Nodes(torch.zeros_like(y), y, x)


def test_two_places_around_a_contour():
    coarse = torch.zeros(1, 12, 12)
    coarse[0, :, 6:] = 1
    [region] = boundary_regions([coarse])
    assert region[0, 5].nonzero().flatten().tolist() == [4, 5, 6, 7]


CHANNELS = 16


def pooled(finer_by: int = 0):
    torch.manual_seed(0)
    maps = [torch.randn(1, CHANNELS, 64 // s, 96 // s, requires_grad=True) for s in (4, 8, 16, 32)]
    pooler = RefinementPooler(CHANNELS, 14, (1 / 4, 1 / 8, 1 / 16, 1 / 32), 0, p2_branch=False, finer_by=finer_by)
    boxes = Boxes(torch.tensor([[3.0, 5.0, 60.0, 44.0], [10.0, 2.0, 30.0, 61.0]]))
    return pooler(list(maps), [boxes]), maps


def test_guided_levels_equal_a_convolution_on_pooled_features():
    pyramid, _ = pooled()
    detection = CascadedDetection(CHANNELS, 8, levels=2)
    nn.init.normal_(detection.layers["incoherence_level1"].weight)
    coarse = torch.rand(2, 28, 28)
    root, finer = detection(pyramid, pyramid.coarse, coarse, [28, 56])
    features = torch.cat([pyramid.dense(1, 56), double(root.sigmoid())[:, None]], 1)
    torch.testing.assert_close(finer, detection.layers["incoherence_level1"](features)[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("finer_by", "expected"), [(0, [2, 1, 0]), (1, [1, 0, 0])], ids=["paper", "released"])
def test_levels_of_the_roi_pyramid(finer_by, expected):
    maps = [torch.randn(1, 8, 512 // s, 512 // s) for s in (4, 8, 16, 32)]
    pooler = RefinementPooler(8, 14, (1 / 4, 1 / 8, 1 / 16, 1 / 32), 0, p2_branch=False, finer_by=finer_by)
    pyramid = pooler(maps, [Boxes(torch.tensor([[0.0, 0.0, 224.0, 224.0]]))])
    assert [int(pyramid.map_of(depth)) for depth in range(3)] == expected


ABLATIONS = {
    "paper": {},
    "depth 1": {"LEVEL_SIZES": [28], "THRESHOLDS_TRAIN": [0.5], "THRESHOLDS_TEST": [0.5]},
    "depth 4": {"LEVEL_SIZES": [28, 56, 112, 224], "THRESHOLDS_TRAIN": [0.5] * 4, "THRESHOLDS_TEST": [0.5] * 4},
    "depth 0": {"LEVEL_SIZES": [], "THRESHOLDS_TRAIN": [], "THRESHOLDS_TEST": []},
    "full region": {"LEVEL_SIZES": [28], "THRESHOLDS_TRAIN": [0.5], "THRESHOLDS_TEST": [0.5], "REGION": "full"},
    "boundary region": {"REGION": "boundary"},
    "mlp": {"REFINER": "mlp", "POSITION": "input"},
    "cnn on full RoIs": {
        "LEVEL_SIZES": [28],
        "THRESHOLDS_TRAIN": [0.5],
        "THRESHOLDS_TEST": [0.5],
        "REGION": "full",
        "REFINER": "cnn",
        "ENCODER_LAYERS": 4,
        "REFERENCE_POINTS": False,
    },
    "non-local": {"REFINER": "non_local"},
    "levels apart": {"JOINT_LEVELS": False},
    "no propagation": {"PROPAGATION": "leaves"},
    "no references": {"REFERENCE_POINTS": False},
    "feature alone": {"CUES": ["feature"]},
    "no context": {"CUES": ["feature", "coarse", "position"]},
    "released": {"preset": "released"},
}


def built(settings: dict) -> nn.Module:
    settings = dict(settings)
    cfg = get_config(settings.pop("preset", "paper"))
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = cfg.MODEL.FPN.OUT_CHANNELS = CHANNELS
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = cfg.MODEL.TRANSFINER.ENCODER_FFN_DIM = 8
    cfg.MODEL.TRANSFINER.SAMPLES_PER_LEVEL = 5
    for key, value in settings.items():
        cfg.MODEL.TRANSFINER[key] = value
    torch.manual_seed(1)
    heads = build_roi_heads(cfg, {f"p{i}": ShapeSpec(channels=CHANNELS, stride=2**i) for i in (2, 3, 4, 5)})
    for name, parameter in heads.mask_head.named_parameters():  # undecided classifiers find about half the places
        if "incoherence_level" in name or "incoherence_root" in name or "predictor_uncertain" in name:
            nn.init.normal_(parameter)
    return heads


@pytest.mark.parametrize("settings", ABLATIONS.values(), ids=ABLATIONS.keys())
def test_every_ablation_trains_and_predicts(settings):
    heads = built(settings)
    size = (heads.mask_head.sizes or [28])[-1]
    maps = {f"p{i}": torch.randn(1, CHANNELS, 64 // 2**i, 96 // 2**i) for i in (2, 3, 4, 5)}
    boxes = Boxes(torch.tensor([[3.0, 5.0, 60.0, 44.0], [10.0, 2.0, 30.0, 61.0]]))
    truth = Instances((64, 96), proposal_boxes=boxes, gt_classes=torch.tensor([0, 2]))
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[:, 10:40, 12:50] = True
    truth.gt_masks = BitMasks(masks)
    with EventStorage():
        losses = heads.train()._forward_mask(maps, [truth])
    sum(losses.values()).backward()
    branch = [*heads.mask_head.named_parameters(), *heads.mask_pooler.named_parameters()]
    assert [name for name, parameter in branch if parameter.grad is None] == []
    detections = Instances((64, 96), pred_boxes=boxes, pred_classes=torch.tensor([0, 2]))
    with torch.no_grad():
        heads.eval()._forward_mask(maps, [detections])
    assert detections.pred_masks.shape == (2, 1, size, size)
    assert ((detections.pred_masks >= 0) & (detections.pred_masks <= 1)).all()
    assert ((detections.uncertainty >= 0) & (detections.uncertainty <= 1)).all()


def test_depth_zero_is_the_coarse_mask():
    heads = built(ABLATIONS["depth 0"])
    assert heads.mask_head.output_size == 28


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("REGION", "edges", "MODEL.TRANSFINER.REGION must be one of"),
        ("PROPAGATION", "none", "MODEL.TRANSFINER.PROPAGATION must be one of"),
        ("LEVEL_SIZES", [28, 50, 112], "must double from level to level"),
        ("THRESHOLDS_TEST", [0.5], "THRESHOLDS_TEST needs a value for each of LEVEL_SIZES"),
        ("DETECTION", "magic", "DETECTION must be one of"),
        ("REFINER", "rnn", "REFINER must be one of"),
        ("POSITION", "output", "POSITION must be one of"),
        ("CUES", ["position"], "CUES must be among"),
    ],
)
def test_wrong_settings_say_what_was_expected(key, value, message):
    with pytest.raises(ValueError, match=message):
        built({key: value})


def test_context_of_references_and_nodes_is_in_one_order():
    heads = built({})
    head, (pyramid, _) = heads.mask_head, pooled(0)
    rois = torch.arange(2)
    references = head.refine._reference_cues(pyramid, torch.rand(2, 28, 28), rois)
    inner = 5 * 14 + 7
    around = [(y, x) for y in (4, 5, 6) for x in (6, 7, 8)]
    expected = torch.cat([pyramid.coarse[0, :, y, x] for y, x in around])
    torch.testing.assert_close(references.context[inner], expected)
    nodes = nodes_of(torch.ones(2, 28, 28, dtype=torch.bool))
    nobody = nodes.select(nodes.roi < 0)
    cues = head.refine._cues(pyramid, torch.rand(2, 28, 28), [nodes, nobody, nobody])[0]
    dense = pyramid.dense(0, 28)
    expected = torch.cat([dense[0, :, y, x] for y, x in around])
    torch.testing.assert_close(cues.context[5 * 28 + 7], expected, atol=1e-4, rtol=1e-4)
