"""The loop: order of samples, schedule, resume, stop, divergence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from training.datasets.loader import training_loader, training_samples
from training.engine.build import (
    MovingAverage,
    build_optimizer,
    get_training_config,
    lr_factor,
    network_config,
    run_fraction,
)
from training.engine.trainer import Trainer, TrainingDiverged


class TinyNetwork(nn.Module):
    """Stands in for the detector where only the loop is tested; remembers the images it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 3)
        self.seen: list[int] = []
        self.fail_at = -1

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        self.seen += [record["image_id"] for record in batch]
        if len(self.seen) == self.fail_at:
            return {"loss": self.layer.weight.sum() * math.nan}
        return {
            "loss": torch.stack([self.layer(record["image"][None] / 255.0).square().mean() for record in batch]).mean()
        }


@pytest.fixture
def cfg() -> CfgNode:
    config = get_training_config("training/scenes-small")
    values = {
        "DATASETS.TRAIN": ["scenes:train:6"],
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (72,),
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 5,
        "TRAINING.SCENE_WIDTH": 96,
        "TRAINING.SCENE_HEIGHT": 72,
        "TRAINING.MAX_MINUTES": 0.0,
        "TRAINING.THREADS": 0,
        "TRAINING.LOG_PERIOD": 1,
    }
    config.merge_from_list([part for pair in values.items() for part in pair])
    return config


def run(cfg: CfgNode, folder: Path, *, resume: bool = False, stop_after: int = 0) -> tuple[Trainer, TinyNetwork]:
    torch.manual_seed(0)
    network = TinyNetwork()
    trainer = Trainer(cfg, network, folder, resume=resume)
    if stop_after:
        cfg = trainer.cfg = cfg.clone()
        cfg.SOLVER.MAX_ITER = stop_after
    trainer.train()
    return trainer, network


def test_a_resumed_run_sees_and_learns_what_an_uninterrupted_one_does(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.TRAINING.FINAL_LR_FACTOR = 1.0  # so that the shortened first part has the same learning rates
    whole, whole_network = run(cfg, tmp_path / "whole")
    _, first = run(cfg, tmp_path / "parts", stop_after=2)
    second, second_network = run(cfg, tmp_path / "parts", resume=True)
    assert first.seen + second_network.seen == whole_network.seen
    assert second.progress.iteration == whole.progress.iteration == 5
    for parameter, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(parameter, other)
    assert whole.average is not None
    assert second.average is not None
    assert all(torch.equal(whole.average.state[name], value) for name, value in second.average.state.items())
    lines = [json.loads(line) for line in (tmp_path / "parts" / "losses.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_do_not_depend_on_workers_or_start(cfg: CfgNode, workers: int) -> None:
    samples = training_samples(cfg)
    expected = [samples[position] for position in (2, 3)]
    cfg.DATALOADER.NUM_WORKERS = workers
    batch = next(iter(training_loader(samples, cfg, first_iteration=1)))
    for record, other in zip(batch, expected, strict=True):
        assert torch.equal(record["image"], other["image"])
        assert torch.equal(record["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)


def test_every_epoch_shows_each_sample_once_in_another_order(cfg: CfgNode) -> None:
    samples = training_samples(cfg)
    epochs = [[samples.place_at(epoch * 6 + place)[1] for place in range(6)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_boxes_enclose_the_visible_masks(cfg: CfgNode) -> None:
    instances = training_samples(cfg)[1]["instances"]
    for mask, (x0, y0, x1, y1) in zip(instances.gt_masks.tensor, instances.gt_boxes.tensor.tolist(), strict=True):
        ys, xs = np.nonzero(mask.numpy())
        assert (x0, y0, x1, y1) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(cfg: CfgNode, tmp_path: Path) -> None:
    network = TinyNetwork()
    network.fail_at = 6
    with pytest.raises(TrainingDiverged, match="not finite"):
        Trainer(cfg, network, tmp_path).train()
    batch_file = torch.load(tmp_path / "diverged_batch_0.pt", weights_only=False)
    assert [record["image_id"] for record in batch_file["batch"]] == network.seen[4:6]


def test_resuming_nothing_and_wrong_class_counts_are_refused(cfg: CfgNode, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        Trainer(cfg, TinyNetwork(), tmp_path, resume=True)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    with pytest.raises(ValueError, match="NUM_CLASSES is 3"):
        Trainer(cfg, TinyNetwork(), tmp_path)


def test_schedule_follows_iterations_or_the_clock(cfg: CfgNode) -> None:
    cfg.SOLVER.MAX_ITER, cfg.TRAINING.MAX_MINUTES, cfg.SOLVER.WARMUP_ITERS = 100, 10.0, 10
    assert run_fraction(cfg, 50, 60) == 0.5
    assert run_fraction(cfg, 50, 540) == 0.9
    assert run_fraction(cfg, 500, 0) == 1
    assert lr_factor(cfg, 0, 0) == pytest.approx(cfg.SOLVER.WARMUP_FACTOR)
    assert lr_factor(cfg, 10, 0) == pytest.approx(1)
    assert lr_factor(cfg, 100, 1) == pytest.approx(cfg.TRAINING.FINAL_LR_FACTOR)


def test_optimizer_spares_norms_and_biases_and_refuses_unknown_names(cfg: CfgNode) -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    groups = build_optimizer(cfg, network).param_groups
    assert sorted((group["weight_decay"], len(group["params"])) for group in groups) == [(0.0, 3), (0.02, 1)]
    cfg.TRAINING.OPTIMIZER = "Lion"
    with pytest.raises(ValueError, match="AdamW or SGD"):
        build_optimizer(cfg, network)


def test_moving_average_follows_quickly_then_slowly() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    average = MovingAverage(network, 0.9)
    nn.init.ones_(network.weight)
    average.update(network)
    assert float(average.state["weight"]) == pytest.approx(1 - 2 / 11)
    for _ in range(200):
        average.update(network)
    assert float(average.state["weight"]) == pytest.approx(1)


def test_a_checkpoint_stores_the_network_without_training_keys(cfg: CfgNode) -> None:
    assert "TRAINING" not in network_config(cfg)
    assert "TRAINING" in cfg
