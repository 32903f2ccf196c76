"""COCO files that people really have: each record is used, repaired or named; nothing becomes background unseen."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.datasets import CocoSet, ImageLeftOutError, open_set
from training.datasets.loader import next_usable

VALID: dict[str, Any] = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 20, "height": 12} for n in (1, 2)],
    "categories": [{"id": 1, "name": "gear"}, {"id": 2, "name": "key"}],
    "annotations": [
        {
            "id": n,
            "image_id": 1 + n % 2,
            "category_id": 1 + n // 2,
            "bbox": [2 * n, 2, 6, 5],
            "segmentation": [[2 * n, 2, 2 * n + 6, 2, 2 * n + 6, 7, 2 * n, 7]],
            "area": 30,
            "iscrowd": 0,
        }
        for n in range(4)
    ],
}


def opened(folder: Path, dataset: Any, *, size: tuple[int, int] = (20, 12), exif: int = 1) -> CocoSet:
    orientation = Image.Exif()
    orientation[0x0112] = exif
    for number in (1, 2):
        Image.new("RGB", size, (9, 99, 200)).save(folder / f"{number}.png", exif=orientation)
    (folder / "a.json").write_text(json.dumps(dataset))
    samples = open_set(f"coco:{folder / 'a.json'}:{folder}", missing="skip")
    assert isinstance(samples, CocoSet)
    return samples


def pairs(annotation: dict[str, Any]) -> list[list[float]]:
    """The corners of an annotation's polygon."""
    return np.reshape(annotation["segmentation"], (-1, 2)).tolist()


def texts(annotation: dict[str, Any]) -> list[str]:
    """The coordinates of an annotation's polygon as texts."""
    return [str(value) for value in annotation["segmentation"][0]]


def changed(**tables: Any) -> dict[str, Any]:
    return copy.deepcopy(VALID) | tables


@pytest.mark.parametrize(
    ("dataset", "kind", "objects"),
    [
        (VALID, None, 4),
        (changed(annotations=[a | {"id": 1} for a in VALID["annotations"]]), "repeated annotation id", 4),
        (changed(annotations=[{k: v for k, v in a.items() if k != "id"} for a in VALID["annotations"]]), None, 4),
        (changed(images=[i | {"id": str(i["id"])} for i in VALID["images"]]), None, 4),
        (changed(images=[{"id": i["id"], "file_name": i["file_name"]} for i in VALID["images"]]), "no size", 4),
        (changed(images=[i | {"file_name": f"C:\\x\\{i['file_name']}"} for i in VALID["images"]]), None, 4),
        (changed(images=[*VALID["images"], VALID["images"][0]]), "repeated image", 4),
        (changed(images=[i | {"id": 1} for i in VALID["images"]]), "repeated image id", 0),
        (changed(categories=[{"id": n, "name": "key"} for n in (1, 2)]), "repeated class name", 4),
        (changed(categories=[{"id": 1, "name": "Key "}, {"id": 2, "name": "key"}]), "similar class names", 4),
        (changed(images=[i | {"file_name": "1.png"} for i in VALID["images"]]), "repeated file", 4),
        (changed(annotations=[a | {"segmentation": [texts(a)]} for a in VALID["annotations"]]), None, 4),
        (changed(annotations=[a | {"segmentation": [pairs(a)]} for a in VALID["annotations"]]), None, 4),
        (changed(annotations=[a | {"segmentation": pairs(a)} for a in VALID["annotations"]]), None, 4),
        (changed(images=[VALID["images"][0], VALID["images"][1] | {"file_name": "x" * 5000}]), "missing file", 2),
        (changed(categories=[{"id": 1}, {"id": 2, "name": "key"}]), "category without name", 4),
        (changed(categories=[{"id": 1, "name": n} for n in ("gear", "key")]), "repeated category id", 0),
        (changed(annotations=None), "no annotations", 0),
    ],
)
def test_records_are_used_repaired_or_named(tmp_path: Path, dataset: Any, kind: str | None, objects: int) -> None:
    samples = opened(tmp_path, dataset)
    assert sum(int((~sample.crowd).sum()) for sample in samples) == samples.object_count == objects
    assert kind is None or kind in samples.problems.counts()
    assert kind is not None or not samples.problems.entries


@pytest.mark.parametrize("crowd", ["1", 1.0, True])
def test_a_crowd_may_be_written_as_text(crowd: Any, tmp_path: Path) -> None:
    dataset = changed(annotations=[a | {"iscrowd": crowd} for a in VALID["annotations"]])
    samples = opened(tmp_path, dataset)
    assert (samples.object_count, samples.problems.entries) == (0, [])


def test_sizes_may_be_texts_and_are_compared_all_the_same(tmp_path: Path) -> None:
    dataset = changed(images=[i | {"width": "20", "height": 12.0} for i in VALID["images"]])
    assert not opened(tmp_path, dataset).problems.entries
    with pytest.raises(ImageLeftOutError, match=r"1\.png is 10 x 6, its record says 20 x 12"):
        opened(tmp_path, dataset, size=(10, 6))[0]


def test_outlines_beyond_a_picture_whose_size_is_not_stated_are_named(tmp_path: Path) -> None:
    dataset = changed(images=[{"id": i["id"], "file_name": i["file_name"]} for i in VALID["images"]])
    samples = opened(tmp_path, dataset, size=(6, 5))
    assert [int((~sample.crowd).sum()) for sample in samples] == [2, 1]
    assert samples.problems.counts() == {"no size": 1, "outline outside": 2, "empty mask": 1}


@pytest.mark.parametrize("folder", ["", "photos/"])
def test_letters_with_accents_may_be_one_character_or_two(folder: str, tmp_path: Path) -> None:
    composed, decomposed = "\u00e9.png", "e\u0301.png"
    for file_name, on_disk in ((composed, decomposed), (decomposed, composed)):
        dataset = changed(images=[VALID["images"][0] | {"file_name": folder + file_name}, VALID["images"][1]])
        opened(tmp_path, dataset)
        (tmp_path / "1.png").rename(tmp_path / on_disk)
        samples = open_set(f"coco:{tmp_path / 'a.json'}:{tmp_path}", missing="skip")
        assert (len(samples), samples.problems.entries) == (2, [])
        (tmp_path / on_disk).unlink()


def test_a_picture_that_may_not_be_read_is_named_as_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = opened(tmp_path, VALID)

    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("training.datasets.sample.read_image", refuse)
    with pytest.raises(ImageLeftOutError, match=r"damaged image: .*Permission denied.*1\.png"):
        samples[0]


def test_masks_drawn_on_unturned_pixels_are_turned_with_the_picture(tmp_path: Path) -> None:
    straight = opened(tmp_path, VALID)[0].masks
    turned_set = opened(tmp_path, VALID, exif=6)
    assert np.array_equal(turned_set[0].masks, np.rot90(straight, -1, axes=(1, 2)))
    assert dict(turned_set.problems.counts()) == {"turned image": 1}
    assert turned_set.problems.lost == 0


def test_a_picture_of_another_size_or_damaged_is_named_and_left_out(tmp_path: Path) -> None:
    samples = opened(tmp_path, VALID, size=(10, 6))
    with pytest.raises(ImageLeftOutError, match=r"1\.png is 10 x 6, its record says 20 x 12"):
        samples[0]
    samples = opened(tmp_path, VALID)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    with pytest.raises(ImageLeftOutError, match=r"1\.png is damaged|1\.png is not an image"):
        samples[0]
    assert dict(samples.problems.counts()) == {"damaged image": 1}
    assert next_usable(samples, 0).image_id == 2
