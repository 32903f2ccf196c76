"""Deformable ResNet: a fresh one equals the plain one, offsets move what is sampled, settings are checked."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock

from model.backbones.resnet_dcn import DeformableBottleneck, build_resnet_dcn_backbone
from model.config import get_config

BLOCK_SETTINGS = [
    {"bottleneck_channels": 8, "stride": 1},
    {"bottleneck_channels": 8, "stride": 2},
    {"bottleneck_channels": 8, "stride": 2, "stride_in_1x1": True},
    {"bottleneck_channels": 8, "num_groups": 2},
    {"bottleneck_channels": 8, "dilation": 2},
]


@pytest.mark.parametrize("settings", BLOCK_SETTINGS)
def test_with_zero_offsets_it_is_the_plain_block(settings: dict) -> None:
    plain = BottleneckBlock(16, 32, norm="BN", **settings).eval()
    deformable = DeformableBottleneck(16, 32, norm="BN", **settings).eval()
    left_over = deformable.load_state_dict(plain.state_dict(), strict=False)
    assert left_over.missing_keys == ["conv2_offset.weight", "conv2_offset.bias"]
    assert left_over.unexpected_keys == []
    x = torch.randn(2, 16, 11, 14)
    torch.testing.assert_close(deformable(x), plain(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("axis", "shift"), [(0, (1, 0)), (1, (0, 1))])
def test_offsets_are_y_then_x_for_each_tap(axis: int, shift: tuple[int, int]) -> None:
    block = DeformableBottleneck(8, 8, bottleneck_channels=8, norm="")
    block.conv3.register_forward_pre_hook(lambda _, inputs: sampled.append(inputs[0]))
    sampled: list[torch.Tensor] = []
    x = torch.rand(1, 8, 9, 9)
    with torch.no_grad():
        block.conv1.weight.abs_()  # all positive, so that no ReLU hides anything
        block.conv2.weight.abs_()
        block(x)
        block.conv2_offset.bias[axis::2] = 1.0  # every tap one pixel down (axis 0) or right (axis 1)
        block(x)
    before, after = sampled
    dy, dx = shift
    # Away from the border, sampling one pixel further is the plain result one pixel further.
    torch.testing.assert_close(after[..., 1:7, 1:7], before[..., 1 + dy : 7 + dy, 1 + dx : 7 + dx])


@pytest.mark.parametrize("depth", [50, 101])
def test_features_are_those_of_detectron2s_resnet(depth: int) -> None:
    cfg = get_config(f"released/R{depth}-FPN-DCN")
    with torch.device("meta"):
        pyramid = build_backbone(cfg, ShapeSpec(channels=3))
        features = pyramid(torch.zeros(1, 3, 64, 96))
    assert {name: tuple(feature.shape[1:]) for name, feature in features.items()} == {
        "p2": (256, 16, 24),
        "p3": (256, 8, 12),
        "p4": (256, 4, 6),
        "p5": (256, 2, 3),
        "p6": (256, 1, 2),
    }
    offsets = [name for name in pyramid.state_dict() if name.endswith("conv2_offset.weight")]
    assert len(offsets) == {50: 13, 101: 30}[depth]
    assert not any("res2" in name for name in offsets)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"DEPTH": 18}, r"DEPTH is 18, expected one of \[50, 101, 152\]"),
        ({"DEFORM_MODULATED": True}, "DEFORM_MODULATED=True"),
        ({"DEFORM_NUM_GROUPS": 2}, "DEFORM_NUM_GROUPS=2"),
        ({"RES5_DILATION": 2}, "RES5_DILATION=2"),
    ],
)
def test_unsupported_settings_are_named(keys: dict, message: str) -> None:
    cfg = get_config("released/R50-FPN-DCN")
    cfg.MODEL.RESNETS.merge_from_other_cfg(type(cfg)(keys))
    with pytest.raises(ValueError, match=message):
        build_resnet_dcn_backbone(cfg, ShapeSpec(channels=3))
