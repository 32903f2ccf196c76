"""`transfiner polygons`: files in, figures, JSON and pictures out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from backend.cli.research.polygons import polygons, read_masks
from tests.support.outline_methods import METHODS, coastline_mask, compare_outline_methods, leaf_mask, shrinkage


@pytest.fixture
def mask_file(tmp_path: Path) -> Path:
    path = tmp_path / "leaf.png"
    Image.fromarray(leaf_mask().astype(np.uint8) * 255).save(path)
    return path


@pytest.fixture
def coco_file(tmp_path: Path) -> Path:
    square = [10, 10, 30, 10, 30, 30, 10, 30]
    beside = [30, 10, 45, 10, 45, 30, 30, 30]
    records = {
        "images": [{"id": 1, "height": 40, "width": 50}],
        "categories": [{"id": 7, "name": "tile"}],
        "annotations": [
            {"id": 3, "image_id": 1, "category_id": 7, "segmentation": [square]},
            {"id": 4, "image_id": 1, "category_id": 7, "segmentation": [beside]},
            {"id": 5, "image_id": 1, "category_id": 7, "segmentation": {"size": [40, 50], "counts": [5, 1, 1994]}},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(polygons, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_png_is_outlined(mask_file: Path) -> None:
    (record,) = json.loads(run(mask_file, "--json", "--tolerance-px", 0))
    assert (record["iou"], record["hausdorff_px"], record["parts"], record["holes"]) == (1.0, 0.0, 1, 1)
    assert record["vertices"] == record["exact_vertices"]


def test_tolerance_and_budget_are_kept(mask_file: Path) -> None:
    (record,) = json.loads(run(mask_file, "--json", "--tolerance-px", 1))
    assert record["hausdorff_px"] <= 1
    assert record["vertices"] < record["exact_vertices"] / 2
    (record,) = json.loads(run(mask_file, "--json", "--max-vertices", 14))
    assert record["vertices"] <= 14
    assert record["hausdorff_px"] <= record["tolerance_px"]


def test_coco_masks_get_a_table_with_a_total(coco_file: Path) -> None:
    lines = run(coco_file, "--tolerance-px", 0).splitlines()
    assert lines[1].split()[:6] == ["3", "tile", "1", "0", "4", "4"]
    assert lines[-1].split()[:2] == ["all", "3"]


def test_shared_edges(coco_file: Path) -> None:
    first, second, _ = json.loads(run(coco_file, "--json", "--shared-edges"))
    corners = [set(map(tuple, record["polygons"][0]["exterior"])) for record in (first, second)]
    assert corners[0] & corners[1] == {(30.0, 10.0), (30.0, 30.0)}


def test_the_picture_shows_pixels_at_zoom(mask_file: Path, tmp_path: Path) -> None:
    run(mask_file, "--picture", tmp_path / "out.png", "--zoom", 6)
    mask = leaf_mask()
    height = np.ptp(np.flatnonzero(mask.any(axis=1))) + 1
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.height == (height + 4) * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["broken.json"], "not a COCO file"),
        (["broken.txt"], "is not an image"),
        (["leaf.png", "--shared-edges", "--max-vertices", "9"], "leave out"),
        (["leaf.png", "--picture", "x.png", "--mask", "2"], "has 1 masks"),
        (["leaf.png", "--max-vertices", "2"], "x>=3"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], message: str, mask_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mask_file.parent)
    Path("broken.json").write_text('{"images": []}', encoding="utf-8")
    Path("broken.txt").write_text("no picture", encoding="utf-8")
    result = CliRunner().invoke(polygons, arguments)
    assert result.exit_code != 0
    assert message in result.output


def test_pixel_centres_cost_area_in_every_round() -> None:
    pytest.importorskip("cv2")
    shares = {name: shrinkage(leaf_mask(), method, 1.0)[-1] for name, method in METHODS.items()}
    assert shares["OpenCV contour + Douglas-Peucker"] < 0.7
    assert 0.9 < shares["transfiner"] < 1.1


def test_methods_are_compared_on_the_same_masks(coco_file: Path) -> None:
    pytest.importorskip("cv2")
    masks = [named.mask_hw for named in read_masks(coco_file)]
    by_method = {figures.method: figures for figures in compare_outline_methods(masks, 1.0, repeats=1)}
    assert by_method["transfiner"].hausdorff_px <= 1
    assert by_method["OpenCV contour + Douglas-Peucker"].hausdorff_px > 1
    assert len(by_method) == 3


def test_the_coastline_is_one_long_outline() -> None:
    mask = coastline_mask(300, 400)
    assert 0.2 < mask.mean() < 0.8
    assert not mask[0].any()
