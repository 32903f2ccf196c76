"""The ways to outline a mask that the documents compare, on the same masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.outline_methods import (
    METHODS,
    SIDE_PX,
    ZOOM,
    coastline_mask,
    coco_masks,
    compare_outline_methods,
    comparison_figure,
    leaf_mask,
    shrinkage,
)


@pytest.fixture
def coco_file(tmp_path: Path) -> Path:
    square = [10, 10, 30, 10, 30, 30, 10, 30]
    records = {
        "images": [{"id": 1, "height": 40, "width": 50}],
        "categories": [{"id": 7, "name": "tile"}],
        "annotations": [
            {"id": 3, "image_id": 1, "category_id": 7, "segmentation": [square]},
            {"id": 5, "image_id": 1, "category_id": 7, "segmentation": {"size": [40, 50], "counts": [5, 1, 1994]}},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_pixel_centres_cost_area_in_every_round() -> None:
    pytest.importorskip("cv2")
    shares = {name: shrinkage(leaf_mask(), method, 1.0)[-1] for name, method in METHODS.items()}
    assert shares["OpenCV contour + Douglas-Peucker"] < 0.7
    assert 0.9 < shares["transfiner"] < 1.1


def test_methods_are_compared_on_the_same_masks(coco_file: Path) -> None:
    pytest.importorskip("cv2")
    by_method = {figures.method: figures for figures in compare_outline_methods(coco_masks(coco_file), 1.0, repeats=1)}
    assert by_method["transfiner"].hausdorff_px <= 1
    assert by_method["OpenCV contour + Douglas-Peucker"].hausdorff_px > 1
    assert len(by_method) == 3


def test_the_coastline_is_one_long_outline() -> None:
    mask = coastline_mask(300, 400)
    assert 0.2 < mask.mean() < 0.8
    assert not mask[0].any()


def test_the_figure_has_a_panel_a_method() -> None:
    pytest.importorskip("cv2")
    figure = comparison_figure(leaf_mask(), 1.0)
    assert figure.width == 4 * SIDE_PX * ZOOM + 5 * 24
