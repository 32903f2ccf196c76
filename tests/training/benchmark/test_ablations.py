"""The half-hour run at a scale of seconds, and its statistics by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from backend.cli.benchmark import directions
from model.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from model.network import build_network
from training.benchmark.ablations import shared_detector as shared
from training.benchmark.ablations.plan import TABLE_NUMBERS, Setting, compared_rows, comparisons, tasks, variant_config
from training.benchmark.ablations.report import verdict
from training.benchmark.ablations.run import LEAST_STEPS, mask_branch, run_ablations
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


def test_every_claim_has_rows_and_the_papers_sign() -> None:
    claims = comparisons()
    assert len(claims) == 21
    by_rows = {(one.table.number, one.first.key, one.second.key): one for one in claims}
    assert by_rows[5, "depth-3", "depth-4"].expected("AP") == pytest.approx(-0.2)
    assert by_rows[8, "neither", "mjr"].expected("APB") == pytest.approx(0.2)
    assert by_rows[5, "depth-0", "depth-1"].expected("APB") is None


def test_rows_that_are_one_training_are_trained_once(detector: Path, tmp_path: Path) -> None:
    planned = tasks(Setting(detector, tmp_path, TABLE_NUMBERS, seeds=1), 5)
    assert len(compared_rows()) == 25
    assert len(planned) == 17
    assert sum(len(task.measured) for task in planned) == 22


def test_a_head_starts_from_the_detectors_coarse_mask_alone(detector: Path) -> None:
    cfg, state, _ = load_checkpoint(detector)
    heads = mask_branch(variant_config(cfg, 4, "all", iterations=1, seed=3), state)
    own = heads.state_dict()
    assert torch.equal(own["mask_head.mask_fcn1.weight"], state["roi_heads.mask_head.mask_fcn1.weight"].float())
    name = "mask_head.encoder.layers.0.linear1.weight"
    assert not torch.equal(own[name], state[f"roi_heads.{name}"].float())
    assert not any(one.requires_grad for name, one in heads.named_parameters() if name.startswith("box"))
    with pytest.raises(ValueError, match="there are none"):
        mask_branch(variant_config(cfg, 4, "all", iterations=1, seed=3), {})


def test_the_run_goes_end_to_end_and_is_not_repeated(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "LEAST_SCORE", 0.0)
    out = tmp_path / "out"
    command = [
        "--weights",
        str(detector),
        "--table",
        "8",
        "--steps",
        "2",
        "--seeds",
        "2",
        "--scenes",
        "3",
        "--images",
        "2",
        "--coarse-steps",
        "2",
        "--processes",
        "1",
        "--out",
        str(out),
        "--json",
    ]
    planned = json.loads(CliRunner().invoke(directions, [*command, "--dry-run"]).stdout)
    assert (planned["trainings"], planned["measurements"]) == (4, 8)
    assert not out.exists()
    done = CliRunner().invoke(directions, command)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [claim["second"] for claim in report["claims"]] == ["mjr", "qmp", "both", "both"]
    for claim in report["claims"]:
        assert claim["mask"]["low"] <= claim["mask"]["high"]
    assert len(report["rows"][0]["mask"]) == 2
    assert "Table 8" in (out / "report.md").read_text() or "| 8 |" in (out / "report.md").read_text()
    assert (out / "directions.png").read_bytes().startswith(b"\x89PNG")
    again = CliRunner().invoke(directions, command)
    assert json.loads(again.stdout)["claims"] == report["claims"]
    assert "trainings, about" not in again.stderr


def test_steps_are_fitted_once_to_the_minutes(detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LEAST_SCORE", 0.0)
    monkeypatch.setattr("training.benchmark.ablations.run._work", lambda setting, task: task)
    setting = Setting(detector, tmp_path, (8,), seeds=1, scenes=2, images=1, minutes=1e-6, processes=1, coarse_steps=1)
    told: list[str] = []
    assert run_ablations(setting, told.append, lambda _: None) == LEAST_STEPS
    assert any("minutes are too few for 60 steps" in line for line in told)
    told.clear()
    assert run_ablations(setting, told.append, lambda _: None) == LEAST_STEPS
    assert not any("timing" in line for line in told)


def test_resampled_ap_of_all_scenes_is_cocos() -> None:
    builder, found = TruthBuilder(CLASSES), []
    samples = open_set("scenes:val:4", width=128, height=96)
    rng = np.random.default_rng(0)
    for index in range(4):
        sample = samples[index]
        builder.add(sample)
        moved = np.array([np.roll(mask, rng.integers(-2, 3, 2), (0, 1)) for mask in sample.masks])
        found += coco_results(index, moved, rng.random(len(moved)), sample.classes)
    truth = builder.build()
    values = resampled_ap(truth.dataset, found, image_weights(4, 10), ratio=0.02)
    assert values["mask"].shape == (11,)
    assert values["mask"][0] == pytest.approx(100 * mask_ap(truth, found)["AP"], abs=1e-9)


def test_differences_are_paired() -> None:
    """Rows that vary wildly by scene and seed but are always half a point apart differ for certain."""
    rng = np.random.default_rng(0)
    first = rng.normal(40, 10, (3, 501))
    found = paired_difference(first, first + 0.5)
    assert (found.low, found.mean, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.significant
    assert verdict(found, 2.0) == "as in the paper"
    assert verdict(found, -2.0) == "against the paper"


def test_noise_and_seeds_that_disagree_are_not_significant() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, (3, 501))
    noise[:, 0] = 0.1
    assert not paired_difference(np.zeros((3, 501)), noise).significant
    split = np.repeat([[3.0], [3.0], [-0.1]], 501, axis=1)  # no doubt about scenes, but about seeds
    found = paired_difference(np.zeros((3, 501)), split)
    assert verdict(found, 1.0) == "not significant"
    assert found.by_seed == (3.0, 3.0, pytest.approx(-0.1))


def test_few_seeds_are_stretched() -> None:
    """Two seeds at 0 and 2: a resample's mean is 0, 1 or 2 around 1, stretched by sqrt(2)."""
    apart = np.repeat([[0.0], [2.0]], 2001, axis=1)
    found = paired_difference(np.zeros_like(apart), apart)
    assert found.low == pytest.approx(1 - 2**0.5)
    assert found.high == pytest.approx(1 + 2**0.5)
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference(apart, apart[:1])
