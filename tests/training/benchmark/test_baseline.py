"""Mask Transfiner beside Mask R-CNN: twins that differ in the mask branch alone, and figures by COCO's evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from backend.cli.main import cli
from tests.support.perturbed_truth import perturb_truth
from training.benchmark.baseline import BASELINE, COARSE, REFINED, Trial, compare_methods, without_refinement
from training.datasets import open_set
from training.evaluation.coco_format import TruthBuilder
from training.metrics.coco import boundary_ap, mask_ap

pytestmark = pytest.mark.slow

SMALL = [
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    "16",
    "INPUT.MIN_SIZE_TRAIN",
    "(64,)",
    "INPUT.MIN_SIZE_TEST",
    "64",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    "20",
    "MODEL.RPN.POST_NMS_TOPK_TEST",
    "10",
    "TRAINING.THREADS",
    "0",
    "MODEL.TRANSFINER.ENCODER_FFN_DIM",
    "16",
    "SOLVER.IMS_PER_BATCH",
    "1",
    "TRAINING.SCENE_WIDTH",
    "96",
    "TRAINING.SCENE_HEIGHT",
    "64",
]


def flat(node: object, path: str = "") -> dict[str, object]:
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, child in node.items() for k, v in flat(child, f"{path}.{key}".lstrip(".")).items()}


def test_the_twins_differ_in_the_mask_branch_alone() -> None:
    cfg = Trial("training/photographs", "scenes:train:2", "scenes:val:2").configuration()
    ours, theirs = flat(cfg), flat(without_refinement(cfg))
    assert {key for key in ours if ours[key] != theirs[key]} == {
        "MODEL.META_ARCHITECTURE",
        "MODEL.ROI_HEADS.NAME",
        "MODEL.ROI_MASK_HEAD.NAME",
    }
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 6
    cfg.MODEL.ROI_HEADS.NAME = "MaskScoringROIHeads"
    with pytest.raises(ValueError, match="MaskScoringROIHeads"):
        without_refinement(cfg)


def test_figures_are_cocos_and_a_gain_on_itself_is_nothing() -> None:
    samples = open_set("scenes:val:4", width=128, height=96)
    builder = TruthBuilder(samples.class_names)
    for sample in samples:
        builder.add(sample)
    index = builder.build()
    good, bad = perturb_truth(index.dataset, copies=1), perturb_truth(index.dataset, copies=3)
    outcome = compare_methods(index.dataset, {BASELINE: bad, COARSE: good, REFINED: good}, ratio=0.02)
    for kind, results in ((BASELINE, bad), (REFINED, good)):
        assert outcome["AP"][kind]["mask"] == pytest.approx(100 * mask_ap(index, results)["AP"], abs=1e-7)
        boundary = boundary_ap(index, results, ratio=0.02)["AP"]
        assert outcome["AP"][kind]["boundary"] == pytest.approx(100 * boundary, abs=1e-7)
    nothing = outcome["gain"][COARSE]["mask"]
    assert (nothing["mean"], nothing["low"], nothing["high"]) == (0, 0, 0)
    change = outcome["gain"][BASELINE]["boundary"]
    assert change["low"] <= change["mean"] <= change["high"]
    assert change["mean"] != 0


def test_one_command_trains_both_and_a_second_finds_them(tmp_path: Path) -> None:
    pairs = [part for pair in zip(SMALL[::2], SMALL[1::2], strict=True) for part in ("--set", *pair)]
    command = [
        "benchmark",
        "beside",
        "--train-set",
        "scenes:train:2",
        "--test-set",
        "scenes:val:1",
        "--rows",
        "1",
        "--iterations",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
        *pairs,
    ]
    first = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    assert "Mask R-CNN: training 1 iterations" in first.output
    assert "| Transfiner, refined masks |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "comparison.png").stat().st_size > 1000
    second = CliRunner().invoke(cli, [*command, "--json"], catch_exceptions=False)
    assert "training" not in second.stderr
    assert json.loads(second.stdout)["AP"].keys() == {BASELINE, COARSE, REFINED}
    refused = CliRunner().invoke(cli, [*command[:2], "--train-set", "via:nowhere", "--test-set", "scenes:val:1"])
    assert refused.exit_code == 1
    assert "via_region_data.json" in refused.output
