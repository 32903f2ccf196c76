"""Sets outlined with the VGG Image Annotator: both versions of the file, odd shapes, and photographs at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.datasets import open_set

BALLOON = Path(os.environ.get("TRANSFINER_SHARED_DATA", "../shared/data")) / "balloon"
SQUARE = {"name": "polygon", "all_points_x": [2, 10, 10, 2], "all_points_y": [3, 3, 9, 9]}
RECTANGLE = {"name": "rect", "x": 12, "y": 0, "width": 4, "height": 5}
POINT = {"name": "point", "cx": 3, "cy": 3}


def written(folder: Path, shapes: list[dict[str, Any]], *, project: bool = False, is_list: bool = True) -> Path:
    Image.fromarray(np.zeros((12, 20, 3), np.uint8)).save(folder / "a.jpg")
    regions = [{"shape_attributes": shape, "region_attributes": {}} for shape in shapes]
    file_regions = regions if is_list else {str(index): region for index, region in enumerate(regions)}
    size = (folder / "a.jpg").stat().st_size
    entries: dict[str, Any] = {"a.jpg123": {"filename": "a.jpg", "size": size, "regions": file_regions}}
    whole = {"_via_settings": {}, "_via_img_metadata": entries} if project else entries
    (folder / "via_region_data.json").write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize("options", [{}, {"is_list": False}, {"project": True}])
def test_polygons_and_rectangles_are_masks(tmp_path: Path, options: dict[str, bool]) -> None:
    samples = open_set(f"via:{written(tmp_path, [SQUARE, RECTANGLE], **options)}:balloon")
    (sample,) = samples
    assert samples.class_names == ("balloon",)
    assert sample.masks.shape == (2, 12, 20)
    assert sample.masks[0, 3:9, 2:10].all()
    assert sample.masks[0].sum() == 48
    assert sample.masks[1].sum() == 20
    assert open_set(f"via:{tmp_path}").class_names == ("object",)


def test_what_is_no_outline_is_reported(tmp_path: Path) -> None:
    flat = SQUARE | {"all_points_y": [3, 3, 3, 3]}
    samples = open_set(f"via:{written(tmp_path, [POINT, flat, SQUARE])}")
    assert samples[0].crowd.tolist() == [True, False]  # the point's place is neither object nor background
    assert samples.problems.counts() == {"unknown shape": 1, "degenerate polygon": 1}
    assert "a.jpg123 region 0: unknown shape: 'point'" in str(samples.problems.entries[0])


def test_files_that_are_missing_or_something_else_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"via_region_data\.json, nor any one JSON file"):
        open_set(f"via:{tmp_path}")
    (written(tmp_path, [SQUARE]) / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.jpg123 of .* is missing"):
        open_set(f"via:{tmp_path}")
    assert len(open_set(f"via:{tmp_path}", missing="skip")) == 0
    (tmp_path / "via_region_data.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="is no VIA file"):
        open_set(f"via:{tmp_path}")


def test_turned_photographs_have_the_size_they_are_shown_with(tmp_path: Path) -> None:
    written(tmp_path, [SQUARE])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 12, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    (sample,) = open_set(f"via:{tmp_path}")
    assert sample.image.shape[:2] == sample.masks.shape[1:] == (12, 20)


@pytest.mark.parametrize(
    ("shape", "area_px"),
    [
        ({"name": "circle", "cx": 8, "cy": 6, "r": 4}, 50.3),
        ({"name": "ellipse", "cx": 8, "cy": 6, "rx": 4, "ry": 3}, 37.7),
        ({"name": "ellipse", "cx": 10, "cy": 6, "rx": 2, "ry": 5, "theta": 1.5707963}, 31.4),
    ],
)
def test_round_shapes_are_masks(tmp_path: Path, shape: dict[str, Any], area_px: float) -> None:
    (sample,) = open_set(f"via:{written(tmp_path, [shape])}")
    assert sample.masks[0].sum() == pytest.approx(area_px, rel=0.1)
    rows, columns = np.flatnonzero(sample.masks[0].any(1)), np.flatnonzero(sample.masks[0].any(0))
    assert len(columns) > len(rows) - 1  # wider than high, also where it is turned


def test_the_only_json_file_is_the_annotation_file(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    written(folder, [SQUARE])
    (folder / "via_region_data.json").rename(folder / "via_export_json.json")
    assert len(open_set(f"via:{folder}")[0].masks) == 1
    assert open_set(f"via:{folder}:balloon").class_names == ("balloon",)


def test_classes_that_are_read_as_one_are_said(tmp_path: Path) -> None:
    file = written(tmp_path, [SQUARE, RECTANGLE]) / "via_region_data.json"
    content = json.loads(file.read_text())
    for region, kind in zip(content["a.jpg123"]["regions"], ("cat", "dog"), strict=True):
        region["region_attributes"] = {"animal": kind, "seen": "yes"}
    file.write_text(json.dumps(content))
    (problem,) = open_set(f"via:{tmp_path}").problems.entries
    assert "attribute 'animal': one class: regions have 2 values, 1 'cat', 1 'dog'; all are read as 'object'" in str(
        problem
    )


@pytest.mark.skipif(not BALLOON.is_dir(), reason=f"no {BALLOON}: set TRANSFINER_SHARED_DATA")
def test_the_balloon_set_is_read_whole() -> None:
    for split, images, outlines in (("train", 61, 255), ("val", 13, 50)):
        samples = open_set(f"via:{BALLOON / split}:balloon")
        assert (len(samples), samples.problems.entries) == (images, [])
        assert len(samples[0].masks) > 0
        assert sum(len(samples.records.annotations[image_id]) for image_id in samples._image_ids) == outlines
