"""Labels that look drawn carelessly, or of a wrong class by a model's disagreement, are named, ranked and drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from backend.cli.main import cli
from model.instance import Instance
from tests.support.miniature import write_scenes
from tests.training.datasets.test_coco_records import VALID, opened
from training.datasets import Sample
from training.datasets.check import doubts_of, save_pictures, statistics


def test_careless_labels_are_named_and_lose_nothing(tmp_path: Path) -> None:
    triangle = [0, 0, 9, 0, 0, 9]
    shapes = {1: triangle, 2: triangle, 3: [12, 2, 18, 2, 18, 7, 12, 7]}
    dataset = VALID | {
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": 1 + number % 2,
                "segmentation": [polygon],
                "bbox": [0, 0, 9, 9],
            }
            for number, polygon in shapes.items()
        ]
    }
    pictures: list[tuple[Any, str, str]] = []
    samples = opened(tmp_path, dataset)
    outcome = statistics(samples, [0, 1], int, lambda problem, picture: pictures.append((picture, problem.kind, "")))
    assert outcome["careless"] == {"duplicate object": 1, "box drawn as polygon": 1}
    assert "image 1, annotation 2: duplicate object: 'gear' lies on 'key'" in outcome["careless_list"][0]
    assert "image 1, annotation 3: box drawn as polygon" in outcome["careless_list"][1]
    assert outcome["lost"] == 0
    assert [kind for _, kind, _ in pictures] == ["duplicate object", "box drawn as polygon"]
    save_pictures(pictures, tmp_path / "careless.png")
    with Image.open(tmp_path / "careless.png") as sheet:
        assert (np.asarray(sheet)[:, :160] == (255, 0, 0)).all(-1).any()
        assert (np.asarray(sheet)[:, 160:320] == (255, 0, 0)).all(-1).any()


def test_a_sliver_is_small_beside_its_image(tmp_path: Path) -> None:
    images = [entry | {"width": 200, "height": 200} for entry in VALID["images"]]
    shapes = ([10, 10, 12, 10, 12, 11, 10, 11], [50, 50, 90, 50, 50, 90])
    annotations = [VALID["annotations"][0] | {"id": n, "segmentation": [s]} for n, s in enumerate(shapes)]
    samples = opened(tmp_path, VALID | {"images": images, "annotations": annotations}, size=(200, 200))
    assert statistics(samples, [0])["careless"] == {"sliver": 1, "box drawn as polygon": 1}


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
    save_pictures([doubt.captioned() for _, doubt in doubts_of(SAMPLE, NAMES, predictions)], tmp_path / "doubts.png")
    with Image.open(tmp_path / "doubts.png") as sheet:
        assert (np.asarray(sheet) == (255, 0, 0)).all(-1).any()


@pytest.mark.slow
def test_check_with_weights_names_the_one_swapped_label(tmp_path: Path) -> None:
    weights = Path(__file__).parents[3] / "model" / "weights" / "scenes-small"
    runner, folder = CliRunner(), tmp_path / "set"
    file = write_scenes(folder, "demo", range(2)).annotations
    dataset = json.loads(file.read_text())
    names = {entry["name"]: entry["id"] for entry in dataset["categories"]}
    annotation = dataset["annotations"][0]
    assert annotation["category_id"] == names["spanner"]
    annotation["category_id"] = names["gear"]
    file.write_text(json.dumps(dataset))
    options = ["--weights", str(weights), "--sheet", str(tmp_path / "sheet.png"), "--json"]
    result = runner.invoke(cli, ["data", "check", f"coco:{file}:{folder / 'images'}", *options])
    (doubt,) = json.loads(result.stdout)["doubts"]
    assert f"annotation {annotation['id']}: labelled 'gear', the model sees 'spanner'" in doubt
    assert (tmp_path / "sheet-doubts.png").is_file()
