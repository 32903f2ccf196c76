"""Starting weights, the paper's schedules, and which sample a run shows when."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from model.checkpoints.checkpoint import Checkpoint
from model.config import get_config
from model.network import build_network
from training.engine.build import get_training_config, start_from, usable_state
from training.engine.step import lr_factor, run_fraction


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


@pytest.mark.parametrize(
    ("name", "batch", "sizes_px", "classes", "rates"),
    [
        # (iteration, learning rate) on both sides of each step
        (
            "coco-R50-FPN-1x",
            16,
            (640, 800, 32),
            80,
            [(1000, 0.02), (59_999, 0.02), (60_000, 0.002), (79_999, 0.002), (80_000, 0.0002), (89_999, 0.0002)],
        ),
        (
            "coco-R101-FPN-3x",
            16,
            (640, 800, 32),
            80,
            [(209_999, 0.02), (210_000, 0.002), (249_999, 0.002), (250_000, 0.0002), (269_999, 0.0002)],
        ),
        ("cityscapes-R50-FPN", 8, (800, 1024, 32), 8, [(17_999, 0.01), (18_000, 0.001), (23_999, 0.001)]),
        (
            "bdd100k-R101-FPN",
            16,
            (600, 720, 24),
            8,
            [(21_999, 0.02), (22_000, 0.002), (25_999, 0.002), (26_000, 0.0002), (29_999, 0.0002)],
        ),
    ],
)
def test_rates_sizes_and_batches_are_the_papers(
    name: str, batch: int, sizes_px: tuple[int, int, int], classes: int, rates: list[tuple[int, float]]
) -> None:
    cfg = get_training_config(f"training/{name}")
    first, last, step = sizes_px
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == list(range(first, last + 1, step))
    assert (batch, classes) == (cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    assert (cfg.TRAINING.OPTIMIZER, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY) == ("SGD", 0.9, 0.0001)
    for iteration, rate in rates:
        factor = lr_factor(cfg, iteration, run_fraction(cfg, iteration, 0.0))
        assert cfg.SOLVER.BASE_LR * factor == pytest.approx(rate), f"iteration {iteration}"
    assert rates[-1][0] + 1 == cfg.SOLVER.MAX_ITER


def test_the_warm_up_is_constant_for_a_thousand_iterations() -> None:
    cfg = get_training_config("training/coco-R50-FPN-1x")
    assert [lr_factor(cfg, iteration, 0.0) for iteration in (0, 500, 999, 1000)] == [0.1, 0.1, 0.1, 1.0]


def test_unknown_schedules_are_refused() -> None:
    cfg = get_training_config("training/coco-R50-FPN-1x")
    cfg.TRAINING.SCHEDULE = "linear"
    with pytest.raises(ValueError, match="choose cosine or steps"):
        lr_factor(cfg, 0, 0.0)
    cfg.SOLVER.WARMUP_METHOD = "slow"
    with pytest.raises(ValueError, match="choose linear or constant"):
        lr_factor(cfg, 0, 0.0)
