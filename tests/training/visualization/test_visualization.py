"""Pictures of a tiny random network: their parts are there, and what they show sums up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from backend.cli.research.visualize import visualize
from model.checkpoints.checkpoint import save_checkpoint
from model.network import build_network
from training.benchmark.recipe import Scale, training_config
from training.benchmark.tables import TABLES
from training.engine.config import network_config
from training.synthetic.scenes import CLASSES, generate_scene
from training.visualization.failures import boundary_error
from training.visualization.observation import Observation, observe


@pytest.fixture(scope="module")
def network() -> tuple:
    cfg = training_config(TABLES[5], TABLES[5].rows[3], Scale(miniature=True), seed=0)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.TRANSFINER.THRESHOLDS_TEST = [0.3, 0.3, 0.99]
    cfg.TEST.DETECTIONS_PER_IMAGE = 2
    torch.manual_seed(1)
    return build_network(cfg).eval(), cfg


@pytest.fixture(scope="module")
def seen(network: tuple) -> Observation:
    return observe(*network, generate_scene(3, width=128, height=96).image)


def test_masks_and_nodes_by_depth(seen: Observation) -> None:
    sides = [level.shape[-1] for level in seen.masks_by_depth()]
    assert sides == [14, 14, 28, 56]
    counts = [len(places) for places in seen.nodes_of(0)]
    assert len(counts) == 3
    assert sum(counts) > 0


def test_attention_of_nodes_is_a_share_of_all_tokens(seen: Observation) -> None:
    weights = np.concatenate(seen.attention_of(0, [0, 1]), axis=1)
    assert weights.shape == (2, sum(len(places) for places in seen.nodes_of(0)))
    assert (weights >= 0).all()
    assert (weights.sum(1) <= 1 + 1e-5).all()  # the rest goes to the reference points


def test_boundary_error_by_hand() -> None:
    """10 x 10 px: a band one pixel wide. Of a 4 x 4 square it has 12 pixels, of a 4 x 5 one 14, 9 are common."""
    square, wider = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    square[2:6, 2:6] = wider[2:6, 2:7] = True
    assert boundary_error(square, square) == 0
    common = 4 + 3 + 3  # the left column, and the rest of the top and bottom rows
    assert boundary_error(square, wider) == pytest.approx(1 - common / (12 + 14 - common))


def test_the_command_writes_the_pictures(network: tuple, tmp_path: Path) -> None:
    built, cfg = network
    metadata = {"name": "tiny", "version": "tiny-1", "classes": list(CLASSES), "preset": "paper"}
    save_checkpoint(tmp_path / "tiny", network_config(cfg), built, metadata)
    Image.fromarray(generate_scene(3, width=128, height=96).image).save(tmp_path / "scene.png")
    result = CliRunner().invoke(
        visualize,
        [
            str(tmp_path / "scene.png"),
            "--weights",
            str(tmp_path / "tiny"),
            "--out",
            str(tmp_path / "out"),
            "--instances",
            "1",
            "--json",
        ],
    )
    assert result.exit_code == 0, result.output
    files = [Path(name) for name in json.loads(result.output)["files"]]
    assert [file.name for file in files] == ["scene-depths.png", "scene-regions.png", "scene-attention.png"]
    for file in files:
        with Image.open(file) as picture:
            assert len(set(picture.convert("L").tobytes())) > 50  # something is drawn


def test_failures_of_a_set_are_drawn_worst_first_with_the_models_own_settings(
    network: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, cfg = network
    sparing = network_config(cfg)
    sparing.MODEL.TRANSFINER.TEST_SEQUENCE_NODES = 123
    metadata = {"name": "tiny", "version": "tiny-1", "classes": list(CLASSES), "preset": "paper"}
    save_checkpoint(tmp_path / "tiny", sparing, built, metadata)
    seen: list[int] = []

    def find(used: object, settings: object, samples: object, **_: object) -> list[dict]:
        seen.append(used.roi_heads.mask_head.settings.test_sequence_nodes)
        square = np.zeros((20, 30), bool)
        square[5:15, 5:15] = True
        case = {
            "image": np.full((20, 30, 3), 90, np.uint8),
            "truth": square,
            "found": np.roll(square, 2, 1),
            "box_xyxy": np.array([5.0, 5, 15, 15]),
            "name": "gear",
            "error": 0.5,
            "mask_iou": 0.7,
        }
        return [case] if len(samples) == 2 else []

    monkeypatch.setattr("training.visualization.failures.find_failures", find)
    command = ["--weights", str(tmp_path / "tiny"), "--out", str(tmp_path / "out"), "--failures"]
    done = CliRunner().invoke(visualize, [*command, "scenes:demo:2"])
    assert done.exit_code == 0, done.output
    assert seen == [123]
    with Image.open(tmp_path / "out" / "failures.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 20
    nothing = CliRunner().invoke(visualize, [*command, "scenes:demo:1"])
    assert (nothing.exit_code, "nothing to compare" in nothing.output) == (1, True)
    assert "unknown data set" in CliRunner().invoke(visualize, [*command, "scenes"]).output
