"""What people drew, as recorded from a real Label Studio, back to masks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.regions.read import AnnotationError, regions_to_objects

RECORDINGS = Path(__file__).parents[2] / "recordings"


def recording(name: str) -> Any:
    (path,) = RECORDINGS.glob(f"{name}*.json")
    return json.loads(path.read_text())["data"]


def submitted(name: str) -> list[dict[str, Any]]:
    return recording(name)["annotations"][0]["result"]


def region(kind: str = "polygon", label: str | None = "car", **fields: Any) -> dict[str, Any]:
    value = fields.pop("value", {"points": [[10, 10], [50, 10], [50, 50], [10, 50]], "closed": True})
    if label is not None:
        value = {**value, f"{kind}labels": [label]}
    base = {"id": "r", "type": f"{kind}labels", "original_width": 100, "original_height": 80}
    return {**base, "value": value, **fields}


def test_export_with_parts_a_brush_with_a_hole_and_a_relation() -> None:
    tasks = recording("70_")
    decoded = regions_to_objects(tasks[0]["annotations"][0]["result"])
    assert (decoded.width, decoded.height, decoded.skipped) == (640, 426, ())
    assert [annotated_object.region_ids for annotated_object in decoded.objects] == [("A1", "A2"), ("B1",)]
    assert [annotated_object.kinds for annotated_object in decoded.objects] == [("polygon", "polygon"), ("brush",)]
    joined, brush = decoded.objects
    square, triangle = 0.2 * 0.3 * 640 * 426, 0.1 * 0.2 / 2 * 640 * 426
    assert joined.mask_hw.sum() == pytest.approx(square + triangle, rel=0.01)
    assert brush.mask_hw.sum() == 30_000
    assert regions_to_objects(tasks[1]["annotations"][0]["result"]).objects == ()  # skipped by the annotator


def test_exif_image_has_the_upright_size() -> None:
    decoded = regions_to_objects(submitted("60_"))
    assert (decoded.width, decoded.height) == (480, 640)
    assert all(annotated_object.mask_hw.shape == (640, 480) for annotated_object in decoded.objects)


def test_rotation_in_the_editor_changes_nothing() -> None:
    rotated = submitted("64_")
    assert rotated[0]["image_rotation"] == 90
    upright = [{**entry, "image_rotation": 0} for entry in rotated]
    assert np.array_equal(
        regions_to_objects(rotated).objects[0].mask_hw, regions_to_objects(upright).objects[0].mask_hw
    )


def test_ids_scores_and_labels_survive_an_edit() -> None:
    (relabelled,) = regions_to_objects(submitted("63_")).objects
    assert (relabelled.label, relabelled.region_ids, relabelled.score) == ("animal", ("b",), 0.9)
    moved_object = regions_to_objects(submitted("62_")).objects[0]
    original = regions_to_objects(recording("62_")["predictions"][0]["result"]).objects[0]
    assert moved_object.region_ids == original.region_ids
    assert (moved_object.mask_hw & original.mask_hw).sum() < original.mask_hw.sum()
    assert moved_object.mask_hw.sum() == pytest.approx(original.mask_hw.sum(), rel=0.001)


def test_a_wrong_size_of_a_prediction_can_be_overruled() -> None:
    predicted = recording("61_")["predictions"][0]["result"]
    assert regions_to_objects(predicted).width == 1280
    decoded = regions_to_objects(predicted, width=640, height=480)
    repaired = regions_to_objects(submitted("61_"))
    assert [f.mask_hw.sum() for f in decoded.objects] == [f.mask_hw.sum() for f in repaired.objects]


@pytest.mark.parametrize(
    ("rotation", "bounds"),
    [
        (0, (20, 8, 60, 24)),
        (90, (4, 8, 20, 48)),  # clockwise about the top left corner
        (180, (-20, -8, 20, 8)),
        (-90, (20, -32, 36, 8)),
    ],
)
def test_boxes_turn_about_their_top_left_corner(rotation: float, bounds: tuple[int, int, int, int]) -> None:
    value = {"x": 20, "y": 10, "width": 40, "height": 20, "rotation": rotation}
    (decoded_object,) = regions_to_objects([region("rectangle", value=value)]).objects
    left, top, right, bottom = bounds
    expected = np.zeros((80, 100), bool)
    expected[max(top, 0) : bottom, max(left, 0) : right] = True
    assert np.array_equal(decoded_object.mask_hw, expected)


def test_a_tilted_box_keeps_its_area_on_an_oblong_image() -> None:
    value = {"x": 40, "y": 30, "width": 30, "height": 25, "rotation": 30}
    (decoded_object,) = regions_to_objects([region("rectangle", value=value)], width=2000, height=1000).objects
    assert decoded_object.mask_hw.sum() == pytest.approx(600 * 250, rel=0.01)


def test_children_with_another_label_are_objects_of_their_own() -> None:
    result = [region(id="a"), region(id="b", label="wheel", parentID="a"), region(id="c", parentID="b")]
    assert [annotated_object.region_ids for annotated_object in regions_to_objects(result).objects] == [
        ("a",),
        ("b",),
        ("c",),
    ]


def test_grandchildren_missing_parents_and_cycles() -> None:
    result = [
        region(id="leaf", parentID="stem"),
        region(id="stem", parentID="root"),
        region(id="root"),
        region(id="lost", parentID="gone"),
        region(id="x", parentID="y"),
        region(id="y", parentID="x"),
        region(id="self", parentID="self"),
    ]
    decoded = regions_to_objects(result)
    assert sorted(sorted(annotated_object.region_ids) for annotated_object in decoded.objects)[0] == [
        "leaf",
        "root",
        "stem",
    ]
    assert decoded.objects[0].region_ids[0] == "root"
    assert sum(len(annotated_object.region_ids) for annotated_object in decoded.objects) == 7


SQUARE = [[10, 10], [50, 10], [50, 50]]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (region(label=None), "no label"),
        (region("keypoint", value={"x": 1, "y": 1}), "'keypoint' is not"),
        (region("keypoint", value={"x": 1, "y": 1, "width": 3}), "'keypoint' is not"),
        (region(value={"points": SQUARE[:2]}), "at least 3 points"),
        (region(value={}), "at least 3 points"),
        (region(value={"points": [[1, 2, 3]] * 4}), "at least 3 points"),
        (region(value={"points": SQUARE, "closed": False}), "not closed"),
        (region(value={"points": [*SQUARE, [math.nan, 1]]}), "expected percent"),
        (region(value={"points": [*SQUARE, [1e300, 1]]}), "expected percent"),
        (region(value={"points": [*SQUARE, ["x", 1]]}), "not numbers"),
        (region(value={"points": [*SQUARE, [1]]}), "not numbers"),
        (region(value={"points": [[110, 10], [150, 10], [150, 50]]}), "covers no pixel"),
        (region("rectangle", value={"x": 1, "y": 2, "width": None, "height": 3}), "expected percent"),
        (region("brush", value={"format": "png", "rle": []}), "'png' is not 'rle'"),
        (region("brush", value={"format": "rle", "rle": [1, 2, 3]}), "cut off"),
        (region("brush", value={"format": "rle", "rle": [0, 0, 0, 4] * 9}), "expected 80 x 100 x 4"),
        (region(label=None, value=None), "no label"),
    ],
)
def test_what_is_no_object_is_skipped_with_a_reason(bad: dict[str, Any], reason: str) -> None:
    decoded = regions_to_objects([bad, region(id="good")])
    assert [annotated_object.region_ids for annotated_object in decoded.objects] == [("good",)]
    ((skipped_id, words),) = decoded.skipped
    assert skipped_id == "r"
    assert reason in words


def test_no_regions_are_no_objects() -> None:
    assert regions_to_objects([]).objects == ()


@pytest.mark.parametrize("size", [(0, 80), (None, 80), (-5, -5), (100_000, 100_000), ("100", 80)])
def test_sizes_that_cannot_be_are_an_error(size: tuple[Any, Any]) -> None:
    with pytest.raises(AnnotationError, match="give the size"):
        regions_to_objects([region(original_width=size[0], original_height=size[1])])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-200, 200) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(["id", "type", "value", "parentID", "score", "original_width", "original_height"])
VALUES = st.dictionaries(
    st.sampled_from(["points", "closed", "rle", "format", "x", "y", "width", "height", "rotation"])
    | st.sampled_from(["polygonlabels", "brushlabels", "rectanglelabels", "labels"]),
    JSON | st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=5),
)
KINDS = st.sampled_from(["polygonlabels", "brushlabels", "rectanglelabels", "labels", "polygon", "relation"])


@given(st.lists(st.dictionaries(KEYS, JSON | VALUES | KINDS), max_size=4))
def test_any_json_is_decoded_or_skipped(result: list[dict[str, Any]]) -> None:
    decoded = regions_to_objects(result, width=20, height=10)
    assert all(annotated_object.mask_hw.shape == (10, 20) for annotated_object in decoded.objects)


def test_a_label_may_be_a_text() -> None:
    entry = region()
    entry["value"] = {"points": SQUARE, "closed": True, "polygonlabels": "car"}
    assert [obj.label for obj in regions_to_objects([entry]).objects] == ["car"]
