"""Sets by name: scenes, and the same scenes through COCO files on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.miniature import write_scenes
from training.datasets import open_set

SIZE = {"width": 128, "height": 96}


def test_a_coco_set_holds_what_the_scenes_hold(tmp_path: Path) -> None:
    scene_files = write_scenes(tmp_path, "val", range(3), **SIZE)
    coco_set = open_set(f"coco:{scene_files.annotations}:{tmp_path / 'images'}")
    scene_set = open_set("scenes:val:3", **SIZE)
    assert coco_set.class_names == scene_set.class_names
    assert len(coco_set) == len(scene_set) == 3
    for index in range(3):
        coco_sample, scene_sample = coco_set[index], scene_set[index]
        assert np.array_equal(coco_sample.image, scene_sample.image)
        assert np.array_equal(coco_sample.masks, scene_sample.masks)
        assert np.array_equal(coco_sample.classes, scene_sample.classes)
        assert coco_sample.image_id == scene_sample.image_id
        assert not coco_sample.crowd.any()


@pytest.mark.parametrize("name", ["scenes", "scenes:test", "scenes:val:many", "coco:only.json", "balloons", ""])
def test_unknown_names_are_refused_with_the_known_forms(name: str) -> None:
    with pytest.raises(ValueError, match="write scenes:"):
        open_set(name)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        open_set(f"coco:{tmp_path / 'nowhere.json'}:{tmp_path}")
    scene_files = write_scenes(tmp_path, "val", range(1), **SIZE)
    scene_files.images[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"val-000000\.png"):
        open_set(f"coco:{scene_files.annotations}:{tmp_path / 'images'}")[0]


def test_scenes_end_where_their_count_says() -> None:
    assert len(list(open_set("scenes:demo:2", **SIZE))) == 2
    with pytest.raises(IndexError):
        open_set("scenes:demo:2", **SIZE)[2]
