"""A repaired copy of any damaged set is clean and holds what was read."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backend.cli.train.data import data
from tests.support.damaged_sets import DAMAGES, write_set
from tests.training.datasets.test_coco_records import VALID, opened
from training.datasets import open_set, usable_samples
from training.datasets.repair import write_repaired


def contents(samples: Any) -> list[tuple[Any, ...]]:
    """Pixels, masks, class names and ignored regions of each usable image."""
    return [
        (
            sample.image.tobytes(),
            sample.masks.tobytes(),
            [samples.class_names[label] for label in sample.classes],
            sample.crowd.tolist(),
        )
        for _, sample in usable_samples(samples)
    ]


def assert_same_and_clean(samples: Any, folder: Path) -> None:
    write_repaired(samples, folder)
    copy = open_set(f"coco:{folder / 'annotations.json'}:{folder / 'images'}")
    assert contents(copy) == contents(samples)
    assert not copy.problems.entries


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        (kind, damage)
        for damage in DAMAGES
        for kind in ("coco", "lvis", "via", "cityscapes", "bdd100k")
        if kind in DAMAGES[damage][0]
    ],
)
def test_the_copy_of_a_damaged_set_is_clean(kind: str, damage: str, tmp_path: Path) -> None:
    damaged_set = write_set(kind, tmp_path / "set")
    DAMAGES[damage][1](damaged_set)
    try:
        samples = open_set(damaged_set.name, missing="skip")
    except (ValueError, FileNotFoundError):
        return  # refused as a whole: there is nothing to copy
    assert_same_and_clean(samples, tmp_path / "copy")


OUTSIDE = [-3, 2, 6, 2, 6, 7, -3, 7]


@pytest.mark.parametrize(
    "fields",
    [
        {"segmentation": []},
        {"segmentation": [OUTSIDE], "bbox": [-3, 2, 9, 5]},
        {"segmentation": [OUTSIDE, [1, 1, 2, 2]]},
        {"segmentation": [[90, 90, 99, 90, 99, 99]]},
        {"category_id": 77},
        {"id": 1},
        {"iscrowd": "no"},
        {"segmentation": {"size": [12, 20], "counts": "P1"}},
    ],
)
def test_an_annotation_is_clipped_ignored_or_numbered_anew(fields: dict[str, Any], tmp_path: Path) -> None:
    dataset = copy.deepcopy(VALID)
    dataset["annotations"][2] |= fields
    samples = opened(tmp_path, dataset, exif=6 if "id" in fields else 1)
    assert_same_and_clean(samples, tmp_path / "copy")
    polygons = json.loads((tmp_path / "copy" / "annotations.json").read_text())["annotations"]
    assert "id" in fields or sum(isinstance(entry["segmentation"], list) for entry in polygons) >= 3
    with pytest.raises(FileExistsError, match="not empty"):
        write_repaired(samples, tmp_path / "copy")


def test_check_with_fix_writes_a_set_whose_check_ends_with_0(tmp_path: Path) -> None:
    dataset = copy.deepcopy(VALID)
    dataset["annotations"][0]["segmentation"] = []
    opened(tmp_path, dataset)
    name = f"coco:{tmp_path / 'a.json'}:{tmp_path}"
    result = CliRunner().invoke(data, ["check", name, "--fix", str(tmp_path / "copy"), "--json"])
    assert result.exit_code == 1
    repaired_copy = json.loads(result.stdout)["repaired_copy"]
    assert (repaired_copy["images"], repaired_copy["annotations"]) == (2, 4)
    assert (tmp_path / "copy" / "sheet.png").is_file()
    sheet = ["--sheet", str(tmp_path / "sheet.png")]
    assert CliRunner().invoke(data, ["check", repaired_copy["set"], *sheet]).exit_code == 0
    assert "is generated" in CliRunner().invoke(data, ["check", "scenes:demo:1", "--fix", "copy"]).output
