"""A network starts from what fits it of a checkpoint; what does not is said."""

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


def narrow_config() -> CfgNode:
    cfg = get_config("released/scenes-small")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.NAME = "TransfinerROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = False
    return cfg


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return build_network(narrow_config()).eval()


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
