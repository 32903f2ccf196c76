"""Swin: equal to torchvision's own implementation on the same weights, at sizes that need padding too."""

from __future__ import annotations

import re

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torchvision.models.swin_transformer import SwinTransformer

from model.backbones.swin import FEATURES, Swin
from model.config import get_config

DEPTHS, HEADS, WIDTH = (2, 2, 4, 2), (1, 2, 4, 8), 16


def our_name(name: str) -> str | None:
    """Our key for one of torchvision's; None for its classifier."""
    stage = re.match(r"features\.(\d+)\.(.*)", name)
    if not stage:
        return None
    index, rest = int(stage[1]), stage[2]
    if index == 0:
        return "patch_embed." + rest.replace("0.", "proj.", 1).replace("2.", "norm.", 1)
    if index % 2 == 0:
        return f"layers.{index // 2 - 1}.downsample.{rest}"
    rest = rest.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
    return f"layers.{index // 2}.blocks.{rest}"


@pytest.fixture(scope="module")
def pair() -> tuple[Swin, SwinTransformer]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = SwinTransformer([4, 4], WIDTH, list(DEPTHS), list(HEADS), [7, 7]).eval()
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    ours = Swin(3, WIDTH, DEPTHS, HEADS).eval()
    state = {our_name(name): tensor for name, tensor in theirs.state_dict().items() if our_name(name)}
    for name, tensor in ours.state_dict().items():
        if name.endswith("relative_position_index"):
            state[name] = state[name].reshape(tensor.shape)  # theirs is flat
    left_over = ours.load_state_dict(state, strict=False)
    assert left_over.unexpected_keys == []
    assert all(key.startswith("norm") for key in left_over.missing_keys)  # the norm of each output
    return ours, theirs


# torchvision stops shifting where one window covers everything; the released models do not. Hence no last stage
# of 7 x 7 tokens or fewer here.
@pytest.mark.parametrize("size_px", [(448, 448), (256, 320), (300, 268)])
def test_stages_equal_torchvisions(pair: tuple[Swin, SwinTransformer], size_px: tuple[int, int]) -> None:
    ours, theirs = pair
    x = torch.randn(2, 3, *size_px)
    with torch.no_grad():
        actual = ours(x)
        for index, part in enumerate(theirs.features):
            x = part(x)
            if index % 2 == 1:
                norm = getattr(ours, f"norm{index // 2}")
                expected = norm(x).permute(0, 3, 1, 2)
                torch.testing.assert_close(actual[FEATURES[index // 2]], expected, atol=1e-5, rtol=1e-5)


def test_stochastic_depth_rises_to_its_rate_and_is_off_outside_training() -> None:
    default = Swin(3, 8, heads=(1, 1, 1, 1))
    rates = [block.drop_path.p for layer in default.layers for block in layer.blocks]
    assert rates == pytest.approx([0.2 * block / 11 for block in range(12)])
    swin = Swin(3, 8, (1, 1, 1, 1), (1, 1, 1, 1), drop_path_rate=1.0)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(swin.eval()(x)["stage5"], swin(x)["stage5"])
        assert torch.isfinite(swin.train()(x)["stage2"]).all()


@pytest.mark.parametrize("freeze_at", [0, 1, 3, 5])
def test_freeze_at_counts_as_detectron2_does(freeze_at: int) -> None:
    swin = Swin(3, 8, (1, 1, 1, 1), (1, 1, 1, 1), freeze_at=freeze_at)
    parts = [swin.patch_embed, *swin.layers]
    assert [next(part.parameters()).requires_grad for part in parts] == [i >= freeze_at for i in range(5)]


@pytest.mark.parametrize(("name", "width"), [("Swin-T", 96), ("Swin-B", 128)])
def test_released_pyramids(name: str, width: int) -> None:
    cfg = get_config(f"released/{name}-FPN")
    pyramid = build_backbone(cfg, ShapeSpec(channels=3))
    with torch.no_grad():
        features = pyramid(torch.zeros(1, 3, 64, 96))
    assert [shape.channels for shape in pyramid.bottom_up.output_shape().values()] == [width * 2**i for i in range(4)]
    assert [tuple(feature.shape[1:]) for feature in features.values()] == [
        (256, 16, 24),
        (256, 8, 12),
        (256, 4, 6),
        (256, 2, 3),
        (256, 1, 2),
    ]
    assert cfg.INPUT.FORMAT == "BGR"
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"depths": (2, 2)}, "need 4 numbers each"), ({"out_features": ["stage9"]}, "unknown Swin features")],
)
def test_wrong_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Swin(**arguments)
