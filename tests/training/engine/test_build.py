"""A checkpoint with one box head starts every stage of a cascade; what does not fit is said."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from model.checkpoints.checkpoint import Checkpoint
from model.config import get_config
from model.network import build_network
from training.engine.build import start_from, usable_state


def narrow_config(heads: str) -> CfgNode:
    cfg = get_config("released/scenes-small")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.NAME = heads
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = heads == "TransfinerCascadeROIHeads"
    return cfg


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return build_network(narrow_config("TransfinerROIHeads")).eval()


@pytest.fixture
def cascade() -> nn.Module:
    return build_network(narrow_config("TransfinerCascadeROIHeads")).eval()


def test_each_stage_predicts_what_the_single_head_did(plain: nn.Module, cascade: nn.Module) -> None:
    with torch.no_grad():  # one row for all classes is the mean of the classes' rows: make them equal
        plain.roi_heads.box_predictor.bbox_pred.weight.normal_(std=0.05)
        rows = plain.roi_heads.box_predictor.bbox_pred.weight.view(-1, 4, 8)
        rows.copy_(rows[:1].expand_as(rows))
    start_from(cascade, plain.state_dict())
    pooled = torch.randn(5, 64, 7, 7)
    boxes = torch.tensor([[10.0, 20.0, 60.0, 90.0]]).repeat(5, 1)
    heads, single = cascade.roi_heads, plain.roi_heads
    logits, deltas = single.box_predictor(single.box_head(pooled))
    expected = single.box_predictor.box2box_transform.apply_deltas(deltas[:, :4], boxes)
    for stage in range(3):
        stage_logits, stage_deltas = heads.box_predictor[stage](heads.box_head[stage](pooled))
        predicted = heads.box_predictor[stage].box2box_transform.apply_deltas(stage_deltas, boxes)
        torch.testing.assert_close(stage_logits, logits)
        torch.testing.assert_close(predicted, expected)


def test_everything_beside_the_boxes_is_taken_over(plain: nn.Module, cascade: nn.Module) -> None:
    start_from(cascade, plain.state_dict())
    theirs = plain.state_dict()
    ours = {key: value for key, value in cascade.state_dict().items() if ".box_" not in key}
    assert ours.keys() == {key for key in theirs if ".box_" not in key}
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_weights_without_a_place_are_named(plain: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    state = plain.state_dict()
    state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(81, 8)
    state["elsewhere"] = torch.zeros(1)
    with caplog.at_level(logging.WARNING):
        start_from(plain, state)
    assert "1 weights start untrained: roi_heads.box_predictor.cls_score.weight" in caplog.text
    assert "2 weights are not used: elsewhere, roi_heads.box_predictor.cls_score.weight" in caplog.text


def test_a_checkpoint_of_something_else_is_refused(plain: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"none of the .* weights of the network"):
        start_from(plain, {"encoder.weight": torch.zeros(1)})


@pytest.mark.parametrize(("theirs", "kept"), [("residual", 4), ("direct", 2)])
def test_a_decoder_that_says_something_else_starts_anew(theirs: str, kept: int) -> None:
    cfg, other = get_config("paper/base"), get_config("paper/base")
    cfg.MODEL.TRANSFINER.DECODER, other.MODEL.TRANSFINER.DECODER = "residual", theirs
    names = [f"roi_heads.mask_head.encoder.conv_r1.{layer}" for layer in ("0.weight", "2.weight", "2.bias")]
    state = {name: torch.zeros(1) for name in [*names, "backbone.conv_r1.2.weight"]}
    assert len(usable_state(Checkpoint(other, state, {}), cfg)) == kept
