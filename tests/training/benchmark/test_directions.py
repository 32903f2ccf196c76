"""The half-hour run at a scale of seconds, and its statistics by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from backend.cli.research.benchmark import benchmark
from model.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from model.network import build_network
from training.benchmark.directions import shared_detector as shared
from training.benchmark.directions.report import build_directions_report, verdict, write_directions_report
from training.benchmark.directions.run import Setting, compared_rows, mask_branch, run_directions, tasks, variant_config
from training.benchmark.recipe import Scale, training_config
from training.benchmark.tables import TABLES
from training.datasets import open_set
from training.engine.config import network_config
from training.evaluation.coco_format import TruthBuilder, coco_results
from training.metrics.bootstrap import image_weights, paired_difference, resampled_ap
from training.metrics.coco import mask_ap
from training.synthetic.scenes import CLASSES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network with random weights that finds something everywhere."""
    cfg = training_config(TABLES[5], TABLES[5].rows[3], Scale(miniature=True), seed=0)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 4
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("detector")
    metadata = {"name": "tiny", "version": "tiny-1", "classes": list(CLASSES), "preset": "paper"}
    save_checkpoint(folder / "tiny", network_config(cfg), build_network(cfg).state_dict(), metadata)
    return folder / "tiny"


def test_every_claim_is_of_two_rows_that_are_run() -> None:
    claims = [(table, claim) for table in TABLES.values() for claim in table.claims]
    assert len(claims) == 21
    assert not [key for table, claim in claims for key in claim if table.row(key).quoted or key in table.apart]
    assert len(compared_rows()) == 25


def test_rows_that_are_one_training_are_trained_once(detector: Path, tmp_path: Path) -> None:
    planned = tasks(Setting(detector, tmp_path, seeds=1, steps=5))
    assert len(planned) == 17
    assert sum(len(task.measured) for task in planned) == 22
    assert sum(len(places) for task in planned for places in task.measured.values()) == 25


def test_a_head_starts_from_the_detectors_coarse_mask_alone(detector: Path) -> None:
    cfg, state, _ = load_checkpoint(detector)
    heads = mask_branch(variant_config(cfg, 4, "all", iterations=1, seed=3), state)
    own = heads.state_dict()
    assert torch.equal(own["mask_head.mask_fcn1.weight"], state["roi_heads.mask_head.mask_fcn1.weight"].float())
    name = "mask_head.encoder.layers.0.linear1.weight"
    assert not torch.equal(own[name], state[f"roi_heads.{name}"].float())
    assert not any(weight.requires_grad for name, weight in heads.named_parameters() if name.startswith("box"))
    with pytest.raises(ValueError, match="there are none"):
        mask_branch(variant_config(cfg, 4, "all", iterations=1, seed=3), {})


def test_the_run_goes_end_to_end_and_is_not_repeated(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "LEAST_SCORE", 0.0)
    setting = Setting(detector, tmp_path, (8,), steps=2, seeds=2, scenes=3, images=2, processes=1, coarse_steps=2)
    lines: list[str] = []
    run_directions(setting, lines.append)
    assert sum("trainings, about" in line for line in lines) == 4
    report = build_directions_report(setting)
    assert [claim["second"] for claim in report["claims"]] == ["mjr", "qmp", "both", "both"]
    assert report["claims"][0]["boundary"]["paper"] == pytest.approx(0.2)
    for claim in report["claims"]:
        assert claim["mask"]["low"] <= claim["mask"]["high"]
    assert len(report["rows"][0]["mask"]) == 2
    write_directions_report(tmp_path, report)
    assert "| 8 | neither | MJR | +0.4 / " in (tmp_path / "report.md").read_text()
    assert (tmp_path / "directions.png").read_bytes().startswith(b"\x89PNG")
    lines.clear()
    run_directions(setting, lines.append)
    assert not lines


def test_the_command_asks_for_no_other_table() -> None:
    refused = CliRunner().invoke(benchmark, ["directions", "--table", "7"])
    assert refused.exit_code == 2
    assert "2" in refused.output


def test_resampled_ap_of_all_scenes_is_cocos() -> None:
    builder, results = TruthBuilder(CLASSES), []
    samples = open_set("scenes:val:4", width=128, height=96)
    rng = np.random.default_rng(0)
    for index in range(4):
        sample = samples[index]
        builder.add(sample)
        moved = np.array([np.roll(mask, rng.integers(-2, 3, 2), (0, 1)) for mask in sample.masks])
        results += coco_results(index, moved, rng.random(len(moved)), sample.classes)
    truth = builder.build()
    values = resampled_ap(truth.dataset, results, image_weights(4, 10), ratio=0.02)
    assert values["mask"].shape == (11,)
    assert values["mask"][0] == pytest.approx(100 * mask_ap(truth, results)["AP"], abs=1e-9)


def test_differences_are_paired() -> None:
    """Rows that vary wildly by scene and seed but are always half a point apart differ for certain."""
    rng = np.random.default_rng(0)
    first = rng.normal(40, 10, (3, 501))
    change = paired_difference(first, first + 0.5)
    assert (change.low, change.mean, change.high) == pytest.approx((0.5, 0.5, 0.5))
    assert change.significant
    assert verdict(change, 2.0) == "as in the paper"
    assert verdict(change, -2.0) == "against the paper"


def test_noise_and_seeds_that_disagree_are_not_significant() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, (3, 501))
    noise[:, 0] = 0.1
    assert not paired_difference(np.zeros((3, 501)), noise).significant
    split = np.repeat([[3.0], [3.0], [-0.1]], 501, axis=1)  # no doubt about scenes, but about seeds
    change = paired_difference(np.zeros((3, 501)), split)
    assert verdict(change, 1.0) == "not significant"
    assert change.by_seed == (3.0, 3.0, pytest.approx(-0.1))


def test_few_seeds_are_stretched() -> None:
    """Two seeds at 0 and 2: a resample's mean is 0, 1 or 2 around 1, stretched by sqrt(2)."""
    apart = np.repeat([[0.0], [2.0]], 2001, axis=1)
    change = paired_difference(np.zeros_like(apart), apart)
    assert change.low == pytest.approx(1 - 2**0.5)
    assert change.high == pytest.approx(1 + 2**0.5)
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference(apart, apart[:1])
