"""Precision of inference: folded norms change nothing, bf16 stays near fp32, `auto` asks processor and checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn

from model.backbones.efficientnet_lite import ConvNorm
from model.checkpoints.checkpoint import save_checkpoint
from model.detectors.nanodet import NanoDet
from model.inference import precision
from model.inference.precision import choose_precision, fold_norms, to_bf16
from model.inference.predictor import Predictor
from model.inference.prompt_predictor import PromptPredictor
from model.mask_head import encoder_layers, refiner, roi_features
from model.mask_head.encoder_layers import EncoderLayer, SelfAttention
from model.mask_head.roi_features import pool_grids
from model.prompts.answers import Prompt
from tests.support.small_network import CLASSES, small_config, small_model

PHOTOS = Path(__file__).parents[3] / "model" / "weights" / "photos"
DIGEST = "d"


def card(mask: float, boundary: float, digest: str = DIGEST) -> dict[str, Any]:
    measurement = {"digest": digest, "mask_ap": {"difference": mask}, "boundary_ap": {"difference": boundary}}
    return {"digest": DIGEST, "bf16": measurement}


@pytest.mark.parametrize(
    ("wish", "device", "metadata", "is_fast", "expected"),
    [
        ("fp32", "cpu", card(0, 0), True, "fp32"),
        ("bf16", "cpu", {}, False, "bf16"),  # asked for by name: whatever is known
        ("auto", "cpu", card(0.001, -0.003), True, "bf16"),
        ("auto", "cpu", card(0, 0), False, "fp32"),  # the processor is slow at it
        ("auto", "cpu", {}, True, "fp32"),  # not measured
        ("auto", "cpu", card(0, 0, digest="of other weights"), True, "fp32"),
        ("auto", "cpu", card(-0.0031, 0), True, "fp32"),  # it costs too much mask AP
        ("auto", "cpu", card(0, -0.0031), True, "fp32"),  # or boundary AP
        ("auto", "cuda", card(0, 0), True, "fp32"),
    ],
)
def test_auto_asks_the_processor_and_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch, wish: str, device: str, metadata: dict, is_fast: bool, expected: str
) -> None:
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: is_fast)
    assert choose_precision(wish, device, metadata) == expected


@pytest.mark.parametrize(
    ("wish", "device", "message"),
    [("fp8", "cpu", "precision is 'fp8', expected one of fp32"), ("bf16", "cuda", "is for CPUs, the device is cuda")],
)
def test_wrong_wishes_are_named(wish: str, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_precision(wish, device, {})


def random_norm(norm: Any) -> Any:
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data.copy_(torch.rand_like(tensor) + 0.5)
    return norm


@pytest.mark.parametrize("with_bias", [False, True])
def test_folded_norms_compute_what_they_did(with_bias: bool) -> None:
    plain = ConvNorm(3, 8, 3, "FrozenStats", stride=2)
    random_norm(plain.norm)
    network = nn.Sequential(plain, Conv2d(8, 4, 1, bias=with_bias, norm=random_norm(FrozenBatchNorm2d(4)))).eval()
    image = torch.randn(2, 3, 17, 12)
    with torch.inference_mode():
        before = network(image)
    fold_norms(network)
    with torch.inference_mode():
        assert torch.allclose(network(image), before, atol=1e-5)
    assert not [module for module in network.modules() if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d))]


def test_grids_pooled_from_the_table_are_roi_aligns() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 8, 40, 60), torch.randn(2, 8, 20, 30)]
    rois = torch.tensor([[0, 3.0, 5, 90, 70], [1, -4, 20, 300, 180], [1, 10, 10, 12, 11], [0, 0, 0, 240, 160]])
    levels = torch.tensor([0, 1, 0, 1])
    pyramid = roi_features.RoIPyramid(torch.zeros(4, 8, 1, 1), None, maps, rois, levels, [4.0, 8.0], finer_by=0)
    assert torch.allclose(pool_grids(maps, [4.0, 8.0], rois, levels, 7), pyramid.dense(0, 7), atol=1e-4)


@pytest.mark.parametrize("lengths", [[5, 9, 30], [12, 12]])
def test_stored_attention_is_the_fused_one(monkeypatch: pytest.MonkeyPatch, lengths: list[int]) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(16, 2, 0.0).eval()
    tokens = torch.randn(sum(lengths), 16)
    with torch.inference_mode():
        exact = attention(tokens, tokens, lengths)
        half = attention.to(torch.bfloat16)
        monkeypatch.setattr(encoder_layers, "has_amx", lambda: False)
        stored = half(tokens.bfloat16(), tokens.bfloat16(), lengths)
        monkeypatch.setattr(encoder_layers, "has_amx", lambda: True)
        fused = half(tokens.bfloat16(), tokens.bfloat16(), lengths)
    assert torch.allclose(stored.float(), exact, atol=0.03)
    assert torch.allclose(fused.float(), exact, atol=0.03)


def test_the_fused_feed_forward_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = EncoderLayer(16, 2, 64, 0.0).eval().to(torch.bfloat16)
    tokens = torch.randn(1500, 16).bfloat16()  # more than one run of rows
    with torch.inference_mode():
        fused = layer(tokens, tokens, [700, 800])
        monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
        plain = layer(tokens, tokens, [700, 800])
    assert torch.equal(fused, plain)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "small"
    metadata = {"name": "small", "version": "7", "classes": list(CLASSES)}
    save_checkpoint(directory, small_config(), small_model(), metadata)
    return directory


IMAGE = np.random.default_rng(1).integers(0, 256, (70, 100, 3), dtype=np.uint8)


def test_fp32_results_do_not_move_by_a_bit(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every faster form of bf16 taken away, and with weights that nobody folded or converted."""
    [instances] = Predictor.from_checkpoint(checkpoint, device="cpu")([IMAGE])
    for module in (encoder_layers, refiner, roi_features):
        monkeypatch.setattr(module, "in_bf16_on_cpu", lambda _: False)
    monkeypatch.setattr("model.inference.predictor.to_bf16", lambda _: pytest.fail("fp32 was asked for"))
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu", precision="auto")
    [expected] = predictor([IMAGE])
    assert predictor.precision == "fp32", "nobody measured these weights"
    assert len(instances) == len(expected) > 0
    for instance, other in zip(instances, expected, strict=True):
        assert (instance.score, instance.box_xyxy) == (other.score, other.box_xyxy)
        assert instance.probabilities is not None
        assert other.probabilities is not None
        assert np.array_equal(instance.probabilities.values, other.probabilities.values)


def test_bf16_finds_the_same_objects_in_half_the_memory(checkpoint: Path) -> None:
    exact = Predictor.from_checkpoint(checkpoint, device="cpu")
    half = Predictor.from_checkpoint(checkpoint, device="cpu", precision="bf16")
    assert (exact.precision, half.precision) == ("fp32", "bf16")
    assert half.weights_bytes < 0.8 * exact.weights_bytes
    [instances], [others] = exact([IMAGE]), half([IMAGE])
    assert len(instances) == len(others) > 0
    assert [i.score for i in others] == pytest.approx([i.score for i in instances], abs=0.02)
    for other in others:
        assert other.probabilities is not None
        assert other.probabilities.values.dtype == np.float32


def settings(**changes: object) -> CfgNode:
    cfg = small_config()
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.mark.parametrize(
    "changes",
    [
        {"MODEL__META_ARCHITECTURE": "GeneralizedRCNN", "MODEL__ROI_HEADS__NAME": "StandardROIHeads",
         "MODEL__ROI_MASK_HEAD__NAME": "MaskRCNNConvUpsampleHead"},
        {"MODEL__MASK_ON": False},
        {"MODEL__ROI_HEADS__NAME": "TransfinerCascadeROIHeads", "MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True},
    ],
)  # fmt: skip
def test_other_two_stage_networks_run_in_bf16(changes: dict[str, object]) -> None:
    from model.network import build_network

    torch.manual_seed(0)
    network = build_network(settings(**changes)).eval()
    to_bf16(network)
    record = {"image": torch.from_numpy(IMAGE).permute(2, 0, 1), "height": 70, "width": 100}
    with torch.inference_mode():
        instances = network([record])[0]["instances"]
    assert instances.scores.dtype == instances.pred_boxes.tensor.dtype == torch.float32


def test_networks_without_bf16_are_named() -> None:
    with pytest.raises(ValueError, match="not available for NanoDet"):
        to_bf16(NanoDet())


def test_prompts_are_answered_alike_in_bf16() -> None:
    disc = np.full((120, 160, 3), (60, 110, 60), np.uint8)
    y, x = np.ogrid[:120, :160]
    disc[(x - 80) ** 2 + (y - 60) ** 2 < 35**2] = (220, 40, 40)
    prompt = Prompt(box_xyxy=(42, 22, 118, 98))
    masks = [
        PromptPredictor.from_checkpoint(PHOTOS, device="cpu", precision=name).prompt(disc, prompt).mask_hw
        for name in ("fp32", "bf16")
    ]
    assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() > 0.95


def test_the_shipped_checkpoint_says_what_bf16_costs_it() -> None:
    metadata = json.loads((PHOTOS.parent / "scenes-small" / "metadata.json").read_text(encoding="utf-8"))
    assert precision.is_measured(metadata), "run `transfiner benchmark precision --card`"
