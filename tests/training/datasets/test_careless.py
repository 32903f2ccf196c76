"""Labels that look drawn carelessly are named and drawn, and lose nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.training.datasets.test_coco_records import VALID, opened
from training.datasets.careless import save_pictures
from training.datasets.statistics import statistics


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
    shown: list[tuple[Any, str, str]] = []
    samples = opened(tmp_path, dataset)
    outcome = statistics(samples, [0, 1], int, lambda problem, picture: shown.append((picture, problem.kind, "")))
    assert outcome["careless"] == {"duplicate object": 1, "box drawn as polygon": 1}
    assert "image 1, annotation 2: duplicate object: 'gear' lies on 'key'" in outcome["careless_list"][0]
    assert "image 1, annotation 3: box drawn as polygon" in outcome["careless_list"][1]
    assert outcome["lost"] == 0
    assert [kind for _, kind, _ in shown] == ["duplicate object", "box drawn as polygon"]
    save_pictures(shown, tmp_path / "careless.png")
    with Image.open(tmp_path / "careless.png") as sheet:
        assert (np.asarray(sheet)[:, :160] == (255, 0, 0)).all(-1).any()
        assert (np.asarray(sheet)[:, 160:320] == (255, 0, 0)).all(-1).any()


def test_a_sliver_is_small_beside_its_image(tmp_path: Path) -> None:
    images = [entry | {"width": 200, "height": 200} for entry in VALID["images"]]
    shapes = ([10, 10, 12, 10, 12, 11, 10, 11], [50, 50, 90, 50, 50, 90])
    annotations = [VALID["annotations"][0] | {"id": n, "segmentation": [s]} for n, s in enumerate(shapes)]
    samples = opened(tmp_path, VALID | {"images": images, "annotations": annotations}, size=(200, 200))
    assert statistics(samples, [0])["careless"] == {"sliver": 1, "box drawn as polygon": 1}
