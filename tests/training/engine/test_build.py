"""The parts of a training run: starting weights, the paper's schedules, what one step learns, progress and its file.

A step learns the same from parts of a batch as from all of it; and in half precision.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from model.checkpoints.checkpoint import Checkpoint
from model.config import get_config
from model.network import build_network
from training.datasets.loader import to_network_input
from training.datasets.sample import WeightedSample
from training.engine.build import (
    LearningStep,
    build_optimizer,
    checked_precision,
    get_training_config,
    in_parts,
    lr_factor,
    run_fraction,
    start_from,
    usable_state,
)
from training.engine.log import RunLog, RunProgress, read_progress, write_progress


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


@pytest.mark.parametrize(("theirs", "usable_count"), [("residual", 4), ("direct", 2)])
def test_a_decoder_that_says_something_else_starts_anew(theirs: str, usable_count: int) -> None:
    cfg, checkpoint_cfg = get_config("paper/base"), get_config("paper/base")
    cfg.MODEL.TRANSFINER.DECODER, checkpoint_cfg.MODEL.TRANSFINER.DECODER = "residual", theirs
    names = [f"roi_heads.mask_head.encoder.conv_r1.{layer}" for layer in ("0.weight", "2.weight", "2.bias")]
    state = {name: torch.zeros(1) for name in [*names, "backbone.conv_r1.2.weight"]}
    assert len(usable_state(Checkpoint(checkpoint_cfg, state, {}), cfg)) == usable_count


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


@pytest.fixture
def cfg() -> CfgNode:
    config = get_training_config("training/scenes-small")
    config.TRAINING.OPTIMIZER = "SGD"
    config.SOLVER.BASE_LR = 0.1
    config.MODEL.DEVICE = "cpu"
    return config


class MeanSquare(nn.Module):
    """A loss that is a mean over images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        images = torch.stack([record["image"] for record in batch])
        features = self.layer(images)
        return {"loss_a": features.square().mean(), "loss_b": (features - 1).abs().mean()}


def never(_: dict[str, float]) -> None:
    raise AssertionError("losses are finite")


@pytest.mark.parametrize("parts", [2, 3, 5, 9])
def test_parts_of_a_batch_teach_what_the_whole_does(cfg: CfgNode, parts: int) -> None:
    generator = torch.Generator().manual_seed(1)
    batch = [{"image": torch.rand(3, generator=generator)} for _ in range(5)]
    outcomes = []
    for count in (1, parts):
        cfg.TRAINING.ACCUMULATE = count
        network = MeanSquare()
        step = LearningStep(cfg, network, build_optimizer(cfg, network))
        outcomes.append((step(batch, never), network.layer.weight.detach(), network.layer.weight.grad))
    (whole, weight, gradient), (pieces, other_weight, other_gradient) = outcomes
    assert pieces == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(other_gradient, gradient)
    torch.testing.assert_close(other_weight, weight)


@pytest.mark.parametrize(
    ("length", "parts", "expected"), [(4, 1, [4]), (4, 2, [2, 2]), (5, 2, [2, 3]), (5, 3, [1, 2, 2]), (2, 4, [1, 1])]
)
def test_parts_are_nearly_equal_and_never_empty(length: int, parts: int, expected: list[int]) -> None:
    assert [len(part) for part in in_parts([{}] * length, parts)] == expected


def test_no_parts_are_refused(cfg: CfgNode) -> None:
    cfg.TRAINING.ACCUMULATE = 0
    network = MeanSquare()
    with pytest.raises(ValueError, match="give 1 or more"):
        LearningStep(cfg, network, build_optimizer(cfg, network))


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("fp16", "cpu", "on cpu choose fp32 or bf16"),  # no scaled gradients there
        ("half", "cpu", "is 'half'"),
        ("int8", "cuda", "on cuda choose fp32, bf16 or fp16"),
    ],
)
def test_precisions_that_cannot_work_are_refused(name: str, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_precision(name, device)


def test_bfloat16_is_used_in_the_forward_pass_alone(cfg: CfgNode) -> None:
    cfg.TRAINING.PRECISION = "bf16"
    network = MeanSquare()
    dtypes: list[torch.dtype] = []
    network.layer.register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
    values = LearningStep(cfg, network, build_optimizer(cfg, network))([{"image": torch.rand(3)}], never)
    assert dtypes == [torch.bfloat16]
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert all(abs(value) < 100 for value in values.values())


def test_bands_are_mirrored_with_their_masks(cfg: CfgNode) -> None:
    import numpy as np
    from detectron2.data import transforms as T

    mask, band = np.zeros((2, 6, 8), bool), np.zeros((2, 6, 8), bool)
    mask[:, 1:3, 0:3] = band[:, 1:3, 2:3] = True
    sample = WeightedSample(
        np.zeros((6, 8, 3), np.uint8),
        mask,
        np.array([0, 1]),
        np.array([False, True]),
        1,
        np.array([0.5, 2.0], np.float32),
        band,
        3.0,
    )
    instances = to_network_input(sample, [T.RandomFlip(prob=1.0)], "RGB")["instances"]
    assert len(instances) == 1, "the crowd left"
    assert (instances.gt_weights.tolist(), instances.gt_band_weights.tolist()) == ([0.5], [3.0])
    assert instances.gt_bands.tensor[0].nonzero().tolist() == [[1, 5], [2, 5]]
    assert instances.gt_boxes.tensor.tolist() == [[5, 1, 8, 3]]


def test_lines_after_the_last_save_are_dropped_when_the_run_goes_on(tmp_path: Path) -> None:
    with RunLog(tmp_path, 1) as log:
        for iteration in (1, 2, 3):
            log.record(iteration, {"total": float(iteration)}, 0.1, iteration / 4, 1.0)
        log.evaluated(2, {"mask_AP": 0.5})
        log.evaluated(3, {"mask_AP": 0.6})
    with (tmp_path / "losses.jsonl").open("a") as file:
        file.write('{"iteration": 4, "tot')  # killed while writing
    with RunLog(tmp_path, 1, first_iteration=2) as log:
        assert log.record(3, {"total": 30.0}, 0.1, 0.75, 9.0) == {"total": 30.0}
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["total"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    iterations = [json.loads(line)["iteration"] for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert iterations == [2]


def test_progress_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "progress.json"
    assert read_progress(path) is None
    note = RunProgress(3, 10, "training", {"total": 1.5}, 7.0, 3.0)
    write_progress(path, note)
    assert read_progress(path) == note
    with pytest.raises(ValueError, match="choose one of starting"):
        RunProgress(3, 10, "sleeping")
    path.write_text('{"percent": 3}')
    with pytest.raises(ValueError, match="not the progress of a run"):
        read_progress(path)
