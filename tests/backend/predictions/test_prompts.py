"""Job ids, and choosing the object that an interactive request points at."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.predictions.prompts import chosen_regions
from backend.queue.job_queue import PredictionJob
from integration.regions.shapes import encode_bitmask, encode_brush_mask

BASE: dict[str, Any] = {
    "project": "7.1795339022",
    "task": {"id": 3, "data": {"image": "a.jpg"}},
    "image": "a.jpg",
    "label_config": "<View/>",
    "model_version": "v1",
    "output": {"tolerance_px": 1.0},
}


@given(project=st.text(), task=st.one_of(st.none(), st.integers(), st.text()), image=st.text(), version=st.text())
@settings(max_examples=200)
def test_ids_are_what_rq_allows(project, task, image, version):
    job = PredictionJob(project, {"id": task, "data": {}}, image, "", version)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,120}", job.id)
    assert PredictionJob(**{**job.payload(), "label_config": job.label_config}).id == job.id


def test_who_asked_does_not_change_the_id():
    assert PredictionJob(**BASE, request_id="r1").id == PredictionJob(**BASE).id


@pytest.mark.parametrize(
    "change",
    [
        {"project": "8.1"},
        {"task": {"id": 4, "data": {"image": "a.jpg"}}},
        {"image": "b.jpg"},
        {"label_config": "<View></View>"},
        {"model_version": "v2"},
        {"output": {"tolerance_px": 2.0}},
    ],
)
def test_whatever_changes_the_prediction_changes_the_id(change):
    assert PredictionJob(**{**BASE, **change}).id != PredictionJob(**BASE).id


def polygon(name: str, left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return {"id": name, "type": "polygonlabels", "value": {"points": points, "closed": True}}


def brush(name: str, rows: slice, columns: slice) -> dict[str, Any]:
    mask_hw = np.zeros((20, 40), bool)
    mask_hw[rows, columns] = True
    value = {"format": "rle", "rle": encode_brush_mask(mask_hw), "brushlabels": ["key"]}
    return {"id": name, "type": "brushlabels", "value": value, "original_width": 40, "original_height": 20}


PREDICTION = {
    "result": [
        polygon("big", 0, 0, 100, 100),
        polygon("small", 10, 10, 30, 30),
        polygon("right", 60, 40, 90, 80),
        brush("brush", slice(18, 20), slice(0, 2)),
    ],
    "score": 0.5,
    "model_version": "v1",
}
EMPTY_MIDDLE = {**PREDICTION, "result": [polygon("small", 10, 10, 30, 30)]}


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        pytest.param({"x": 20, "y": 20, "width": 0.5}, ["small"], id="click: the smallest under it"),
        pytest.param({"x": 50, "y": 5, "width": 0.5}, ["big"], id="click: on nothing else"),
        pytest.param({"x": 2, "y": 99, "width": 0.5}, ["brush"], id="click: on a brush mask"),
        pytest.param({"x": 0, "y": 89, "width": 6, "height": 11}, ["brush"], id="box: around a brush mask"),
        pytest.param({"x": 9, "y": 9, "width": 22, "height": 22}, ["small"], id="box: fills it best"),
        pytest.param({"x": 58, "y": 35, "width": 40, "height": 50, "rotation": 0}, ["right"], id="loose box"),
        pytest.param({"x": 20, "y": 20, "radiusX": 10, "radiusY": 10}, ["small"], id="ellipse"),
        pytest.param({"points": [[61, 41], [89, 41], [75, 79]]}, ["right"], id="polygon"),
        pytest.param({"rle": [1]}, ["big", "small", "right", "brush"], id="unreadable prompt: everything"),
        pytest.param({"x": "a", "y": 1}, ["big", "small", "right", "brush"], id="nonsense: everything"),
        pytest.param(None, ["big", "small", "right", "brush"], id="no value: everything"),
    ],
)
def test_the_region_that_is_meant(value, chosen):
    context = {"result": [{"type": "x", "value": value}]}
    answer = chosen_regions(PREDICTION, context)
    assert [region["id"] for region in answer["result"]] == chosen
    assert answer["model_version"] == "v1"
    assert len(PREDICTION["result"]) == 4


def test_the_newest_prompt_counts():
    prompts = [{"value": {"x": 20, "y": 20}}, {"value": {"x": 75, "y": 60}}]
    assert chosen_regions(PREDICTION, {"result": prompts})["result"][0]["id"] == "right"


@pytest.mark.parametrize("context", [{}, {"result": None}, {"result": []}])
def test_no_prompt_means_everything(context):
    assert chosen_regions(PREDICTION, context) == PREDICTION


@pytest.mark.parametrize("value", [{"x": 80, "y": 80}, {"x": 1, "y": 1, "width": 1, "height": 1}])
def test_a_prompt_beside_everything_chooses_nothing(value):
    assert chosen_regions(EMPTY_MIDDLE, {"result": [{"value": value}]})["result"] == []


def test_a_click_takes_the_painted_pixels_of_a_brush_mask_and_not_its_box() -> None:
    corner = brush("corner", slice(0, 20), slice(0, 40))
    hollow = np.ones((20, 40), bool)
    hollow[5:15, 10:30] = False
    corner["value"]["rle"] = encode_brush_mask(hollow)
    for place, chosen in (({"x": 5, "y": 5}, ["corner"]), ({"x": 100, "y": 100}, ["corner"]), ({"x": 50, "y": 50}, [])):
        answer = chosen_regions({"result": [corner]}, {"result": [{"value": place}]})
        assert [region["id"] for region in answer["result"]] == chosen


def drawn(name: str, kind: str, rows: slice, columns: slice) -> dict[str, Any]:
    """A region of a kind; the painted ones have a hole in the middle of the image."""
    mask_hw = np.zeros((40, 60), bool)
    mask_hw[rows, columns] = True
    mask_hw[18:22, 28:32] = False
    left, top = columns.start / 0.6, rows.start / 0.4
    right, bottom = columns.stop / 0.6, rows.stop / 0.4
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    values: dict[str, dict[str, Any]] = {
        "brush": {"format": "rle", "rle": encode_brush_mask(mask_hw)},
        "bitmask": {"imageDataURL": encode_bitmask(mask_hw)},
        "vector": {"vertices": [{"x": x, "y": y} for x, y in corners], "closed": True},
    }
    size = {"original_width": 60, "original_height": 40}
    return {"id": name, "type": f"{kind}labels", "value": values[kind], **size}


@pytest.mark.parametrize("kind", ["brush", "bitmask", "vector"])
@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        pytest.param({"x": 40, "y": 40, "width": 1}, ["small"], id="click: the smallest under it"),
        pytest.param({"x": 50, "y": 50, "width": 1}, [], id="click into the hole of painted ones"),
        pytest.param({"x": 2, "y": 2, "width": 1}, ["big"], id="click: on nothing else"),
        pytest.param({"x": 30, "y": 30, "width": 40, "height": 40}, ["small"], id="box"),
    ],
)
def test_regions_of_every_kind_are_chosen(kind, value, chosen):
    regions = [drawn("big", kind, slice(0, 40), slice(0, 60)), drawn("small", kind, slice(12, 28), slice(18, 42))]
    answer = chosen_regions({"result": regions}, {"result": [{"value": value}]})
    has_hole = kind != "vector"
    assert [region["id"] for region in answer["result"]] == (chosen or ([] if has_hole else ["small"]))


def test_an_object_of_two_entries_is_chosen_whole() -> None:
    outline = {"points": [[20, 20], [60, 20], [60, 60], [20, 60]]}
    entries = [
        {"id": "a", "type": "polygon", "value": outline},
        {"id": "a", "type": "labels", "value": {**outline, "labels": ["key"]}},
        {"id": "b", "type": "polygon", "value": {"points": [[0, 0], [99, 0], [99, 99], [0, 99]]}},
    ]
    click = {"result": [{"is_positive": True, "value": {"x": 40, "y": 40, "width": 0.4}}]}
    assert chosen_regions({"result": entries}, click)["result"] == entries[:2]
