"""Labels of a wrong class are found by a model's disagreement, ranked, and drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from backend.cli.main import cli
from model.instance import Instance
from tests.support.miniature import write_scenes
from training.datasets import Sample
from training.evaluation.swapped_classes import doubts_of, save_doubts

NAMES = ("gear", "key")


def mask(left: int) -> np.ndarray:
    mask_hw = np.zeros((20, 40), bool)
    mask_hw[4:12, left : left + 8] = True
    return mask_hw


def prediction(left: int, label: str, score: float) -> Instance:
    return Instance((left, 4, left + 8, 12), label, score, mask(left))


SAMPLE = Sample(
    np.zeros((20, 40, 3), np.uint8), np.stack([mask(2), mask(20)]), np.array([0, 1]), np.zeros(2, bool), image_id=7
)


@pytest.mark.parametrize(
    ("predictions", "doubts"),
    [
        ([], []),
        ([prediction(2, "gear", 0.9), prediction(20, "key", 0.9)], []),
        ([prediction(2, "key", 0.9)], [(0, "gear", "key", 0.9)]),
        ([prediction(2, "key", 0.9), prediction(2, "gear", 0.3)], [(0, "gear", "key", 0.6)]),
        ([prediction(2, "key", 0.3), prediction(2, "gear", 0.9)], []),
        ([prediction(10, "key", 0.9)], []),  # another place
        ([prediction(2, "spoon", 0.9)], []),  # a class that the set has not
    ],
)
def test_doubts_are_predictions_of_another_class(
    predictions: list[Instance], doubts: list[tuple[int, str, str, float]]
) -> None:
    seen = [
        (number, doubt.label, doubt.predicted, round(doubt.disagreement, 6))
        for number, doubt in doubts_of(SAMPLE, NAMES, predictions)
    ]
    assert seen == doubts


def test_crowds_and_empty_images_are_not_judged(tmp_path: Path) -> None:
    predictions = [prediction(2, "key", 0.9)]
    assert not doubts_of(replace(SAMPLE, crowd=np.ones(2, bool)), NAMES, predictions)
    empty = replace(SAMPLE, masks=np.zeros((0, 20, 40), bool), classes=np.zeros(0, int), crowd=np.zeros(0, bool))
    assert not doubts_of(empty, NAMES, predictions)
    save_doubts([doubt for _, doubt in doubts_of(SAMPLE, NAMES, predictions)], tmp_path / "doubts.png")
    with Image.open(tmp_path / "doubts.png") as sheet:
        assert (np.asarray(sheet) == (255, 0, 0)).all(-1).any()


@pytest.mark.slow
def test_check_with_weights_names_the_one_swapped_label(tmp_path: Path) -> None:
    weights = Path(__file__).parents[3] / "model" / "weights" / "scenes-small"
    runner, folder = CliRunner(), tmp_path / "set"
    file = write_scenes(folder, "demo", range(2)).annotations
    dataset = json.loads(file.read_text())
    names = {entry["name"]: entry["id"] for entry in dataset["categories"]}
    swapped = dataset["annotations"][0]
    assert swapped["category_id"] == names["spanner"]
    swapped["category_id"] = names["gear"]
    file.write_text(json.dumps(dataset))
    options = ["--weights", str(weights), "--sheet", str(tmp_path / "sheet.png"), "--json"]
    result = runner.invoke(cli, ["data", "check", f"coco:{file}:{folder / 'images'}", *options])
    (doubt,) = json.loads(result.stdout)["doubts"]
    assert f"annotation {swapped['id']}: labelled 'gear', the model sees 'spanner'" in doubt
    assert (tmp_path / "sheet-doubts.png").is_file()
