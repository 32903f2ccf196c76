"""Instances to predictions, judged by Label Studio's own validation, and back to masks."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_studio_sdk.label_interface import LabelInterface

from integration import exact
from integration.annotations import regions_to_objects
from integration.contours import trace_rings
from integration.label_config import LabelConfigError, parse_label_config
from integration.regions import (
    Output,
    RegionError,
    Report,
    build_prediction,
    certainty,
    instances_to_prediction,
)
from model.instance import Instance

RECORDINGS = Path(__file__).parents[1] / "recordings"
ALL_KINDS = """<View><Image name="image" value="$image"/>
  <RectangleLabels name="rect" toName="image"><Label value="car"/><Label value="sign"/></RectangleLabels>
  <BrushLabels name="brush" toName="image"><Label value="car"/></BrushLabels>
  <PolygonLabels name="poly" toName="image" {control}>{labels}</PolygonLabels></View>"""
LABELS = '<Label value="car"/><Label value="tree" predicted_values="Oak,pine"/>'
PAIRED = """<View><Image name="image" value="$image"/><Labels name="what" toName="image"><Label value="car"/></Labels>
  <{tag} name="shape" toName="image"/></View>"""
EXACT = Output(tolerance_px=0, min_area_px=0)


def config_xml(labels: str = LABELS, control: str = "") -> str:
    return ALL_KINDS.format(labels=labels, control=control)


def ring(height: int = 40, width: int = 60) -> np.ndarray:
    """A part with a hole that holds an island, and a small part beside it."""
    mask_hw = np.zeros((height, width), dtype=bool)
    mask_hw[5:30, 5:40] = True
    mask_hw[10:20, 12:25] = False
    mask_hw[13:17, 15:19] = True
    mask_hw[33:36, 2:9] = True
    return mask_hw


def instance(mask_hw: np.ndarray | None = None, label: str = "car", **fields: Any) -> Instance:
    return Instance(
        (5, 5, 40, 30),
        label,
        **{"score": 0.9, "mask_hw": ring(), **fields} | ({} if mask_hw is None else {"mask_hw": mask_hw}),
    )


@functools.cache
def judge(xml: str) -> LabelInterface:
    return LabelInterface(xml)


def predict(
    instances: Sequence[Instance], xml: str | None = None, **fields: Any
) -> tuple[dict[str, Any], Report]:
    """As build_prediction, judged by Label Studio's validation each time."""
    xml = xml or config_xml()
    sized = {"width": 60, "height": 40, "model_version": "v1", **fields}
    prediction, report = build_prediction(instances, parse_label_config(xml), **sized)
    assert judge(xml).validate_prediction(prediction, return_errors=True) == []
    json.dumps(prediction, allow_nan=False)
    ids = [(region["id"], region["from_name"]) for region in prediction["result"]]
    assert len(set(ids)) == len(ids)
    assert report.regions == len(ids)
    assert report.instances == len(instances) == report.shown + sum(report.dropped.values())
    return prediction, report


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("auto", ["polygonlabels"] * 3),
        ("polygon", ["polygonlabels"] * 3),
        ("brush", ["brushlabels"]),
        ("rectangle", ["rectanglelabels"]),
        ("all", ["polygonlabels"] * 3 + ["brushlabels", "rectanglelabels"]),
    ],
)
def test_kinds(kind: Any, types: list[str]) -> None:
    prediction, _ = predict([instance()], output=replace(EXACT, kind=kind))
    assert [region["type"] for region in prediction["result"]] == types
    for region in prediction["result"]:
        assert (region["original_width"], region["original_height"], region["image_rotation"]) == (60, 40, 0)
        assert region["value"].get("closed", True) is True
        assert region["score"] == 0.9


def test_a_class_that_only_has_boxes_gets_boxes() -> None:
    prediction, _ = predict([instance(label="Sign")], output=Output(kind="brush"))
    (region,) = prediction["result"]
    assert region["type"] == "rectanglelabels"
    assert region["value"]["rectanglelabels"] == ["sign"]


@pytest.mark.parametrize("tag", ["Polygon", "Brush", "Rectangle"])
def test_geometry_and_label_tags_give_two_results_with_one_id(tag: str) -> None:
    xml = PAIRED.format(tag=tag)
    prediction, _ = predict([instance(np.pad(np.ones((8, 9), bool), ((5, 27), (6, 45))))], xml)
    geometry, label = prediction["result"]
    assert geometry["id"] == label["id"]
    assert (geometry["type"], geometry["from_name"]) == (tag.lower(), "shape")
    assert (label["type"], label["value"]["labels"], label["from_name"]) == ("labels", ["car"], "what")
    (found,) = regions_to_objects(prediction["result"]).objects
    assert (found.label, found.mask_hw.sum()) == ("car", 72)


def test_parts_are_joined_by_parent_id_and_holes_by_cuts() -> None:
    prediction, _ = predict([instance()], output=EXACT)
    first, *others = prediction["result"]
    assert "parentID" not in first
    assert [region["parentID"] for region in others] == [first["id"]] * 2
    assert first["meta"]["text"] == ["part 1 of 3", "1 hole is joined to the outline by a cut of no width"]
    assert [region["meta"]["text"] for region in others] == [["part 2 of 3"], ["part 3 of 3"]]


def test_plain_regions_carry_no_notes() -> None:
    prediction, _ = predict([instance(np.ones((40, 60), bool))])
    assert "meta" not in prediction["result"][0]
    assert prediction["result"][0]["value"]["points"] == [[0, 0], [100, 0], [100, 100], [0, 100]]


def test_small_parts_and_holes_are_counted_and_said() -> None:
    mask_hw = ring()
    mask_hw[38, 50] = True
    mask_hw[25, 30] = False
    prediction, report = predict([instance(mask_hw)], output=Output(min_area_px=20, tolerance_px=0))
    assert (report.parts_dropped, report.holes_filled) == (2, 1)
    (first, _) = prediction["result"]
    assert "2 parts smaller than 20 px left out" in first["meta"]["text"]
    assert "1 hole smaller than 20 px filled" in first["meta"]["text"]


def test_leaving_out_what_is_small_traces_the_mask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []

    def trace_and_count(mask_hw: np.ndarray) -> list[np.ndarray]:
        traced.append(mask_hw)
        return trace_rings(mask_hw)

    monkeypatch.setattr(exact, "trace_rings", trace_and_count)
    _, report = predict([instance(np.eye(40, 60, dtype=bool) | ring())], output=Output(min_area_px=20))
    assert report.parts_dropped
    assert len(traced) == 1


@pytest.mark.parametrize("tolerance_px", [0, 1, 3])
def test_objects_that_touch_share_one_edge_when_asked(tolerance_px: float) -> None:
    y, x = np.mgrid[:40, :60]
    border = 30 + 6 * np.sin(y / 5)
    left, right = (x < border) & (x > 4) & (y > 3), (x >= border) & (x < 55) & (y < 37)
    both = [instance(left), instance(right, score=0.8)]
    alone = Output(tolerance_px=tolerance_px)
    prediction, report = predict(both, output=replace(alone, shared_edges=True))
    assert (report.shown, report.regions) == (2, 2)
    shared = [set(map(tuple, region["value"]["points"])) for region in prediction["result"]]
    assert len(shared[0] & shared[1]) >= 4
    one, other = (found.mask_hw for found in regions_to_objects(prediction["result"]).objects)
    assert not (one & other).any()
    assert (one | other)[5:35, 10:50].all()
    apart, _ = predict(both, output=alone)
    assert apart != prediction


def test_a_vertex_budget_or_another_tolerance_keeps_edges_apart() -> None:
    halves = np.zeros((2, 40, 60), bool)
    halves[0, 5:30, 5:30] = halves[1, 5:30, 30:50] = True
    both = [instance(half) for half in halves]
    for output in (
        Output(shared_edges=True, max_vertices=9),
        Output(shared_edges=True, score_threshold=0.95),
    ):
        assert predict(both, output=output) == predict(both, output=replace(output, shared_edges=False))


def test_what_is_merged_or_cut_is_counted() -> None:
    _, report = predict([instance()], output=replace(EXACT, kind="all"))
    holes = sum(len(polygon.holes) for polygon in exact.exact_polygons(ring()))
    assert holes
    # Three polygons; one brush mask and one box hold all three parts.
    assert report.changes() == {"holes joined by a cut": holes, "parts merged": 4}
    _, report = predict([instance(np.ones((40, 60), bool))])
    assert report.changes() == {}


def test_holes_as_brush_when_asked_and_there_is_a_brush() -> None:
    whole = np.pad(np.ones((8, 9), bool), ((5, 27), (6, 45)))
    output = replace(EXACT, holes="brush")
    prediction, _ = predict([instance(), instance(whole)], output=output)
    assert [region["type"] for region in prediction["result"]] == ["brushlabels", "polygonlabels"]
    prediction, _ = predict([instance(label="pine")], output=output)  # no brush for trees
    assert {region["type"] for region in prediction["result"]} == {"polygonlabels"}


@pytest.mark.parametrize(
    ("labels", "control", "default", "shown"),
    [
        (LABELS, "", 0.0, 3),
        (LABELS, "", 0.5, 2),
        (LABELS, 'model_score_threshold="0.8"', 0.5, 1),
        (LABELS, 'model_score_threshold="0.1"', 0.5, 3),
        ('<Label value="car" model_score_threshold="0.95"/>', 'model_score_threshold="0.1"', 0.0, 0),
        ('<Label value="car" model_score_threshold="0"/>', 'model_score_threshold="1"', 1.0, 3),
    ],
)
def test_thresholds_label_before_control_before_setting(
    labels: str, control: str, default: float, shown: int
) -> None:
    instances = [instance(score=score) for score in (0.3, 0.9, 0.6)]
    prediction, report = predict(
        instances, config_xml(labels, control), output=Output(score_threshold=default)
    )
    assert report.shown == shown
    assert report.dropped[Report.LOW_SCORE] == 3 - shown
    scores = [region["score"] for region in prediction["result"]]
    assert scores == sorted(scores, reverse=True)


def test_more_than_the_limit_keeps_the_best_and_says_so() -> None:
    whole = np.ones((40, 60), bool)
    instances = [instance(whole, score=score) for score in (0.1, 0.9, 0.5, 0.7)]
    prediction, report = predict(instances, config_xml(control='model_max_regions="2"'))
    assert [region["score"] for region in prediction["result"]] == [0.9, 0.7]
    assert report.dropped == {Report.OVER_LIMIT: 2}
    assert prediction["result"][0]["meta"]["text"] == ["2 more objects found, over the limit of regions"]


def test_what_is_left_out_is_counted_by_reason() -> None:
    empty, speck = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    speck[3, 3] = True
    instances = [
        instance(label="whale"),
        instance(empty),
        instance(speck),
        instance(score=math.nan),
        instance(score=math.inf),
    ]
    prediction, report = predict(instances)
    assert (prediction["result"], prediction["score"]) == ([], 0.0)
    assert report.as_dict()["dropped"] == {
        Report.NO_LABEL: 1,
        Report.TOO_SMALL: 2,
        Report.NOT_A_NUMBER: 2,
    }
    assert report.as_dict()["unlabelled"] == {"whale": 1}


def test_control_attributes_win_over_settings() -> None:
    disc = np.hypot(*np.mgrid[-20:20, -30:30]) < 15
    fine, _ = predict([instance(disc)], config_xml(control='model_tolerance_px="0"'), output=Output())
    coarse, _ = predict([instance(disc)], output=Output(tolerance_px=3))
    assert len(coarse["result"][0]["value"]["points"]) < len(fine["result"][0]["value"]["points"])
    _, report = predict([instance(disc)], config_xml(control='model_min_area="2000"'))
    assert report.dropped == {Report.TOO_SMALL: 1}


def test_boxes_enclose_the_mask_and_fall_back_to_the_detection() -> None:
    xml = config_xml()
    output = Output(kind="rectangle")
    prediction, _ = predict([instance(), instance(np.zeros((40, 60), bool))], xml, output=output)
    values = [region["value"] for region in prediction["result"]]
    assert values[0] | {"rectanglelabels": None} == {
        "x": pytest.approx(2 / 60 * 100),
        "y": 12.5,
        "width": pytest.approx(38 / 60 * 100),
        "height": 77.5,
        "rotation": 0,
        "rectanglelabels": None,
    }
    assert values[1]["width"] == pytest.approx(35 / 60 * 100)


def test_detections_beyond_the_image_are_clamped() -> None:
    boundless = Instance((-50, -50, 500, 500), "sign", 1.0, np.zeros((40, 60), bool))
    nowhere = Instance((math.nan, 0, 5, 5), "sign", 0.5, np.zeros((40, 60), bool))
    prediction, report = predict([boundless, nowhere])
    value = prediction["result"][0]["value"]
    assert (value["x"], value["y"], value["width"], value["height"]) == (0, 0, 100, 100)
    assert report.dropped == {Report.TOO_SMALL: 1}


def test_equal_predictions_are_equal_and_other_tasks_have_other_ids() -> None:
    def ids(**fields: Any) -> list[str]:
        return [region["id"] for region in predict([instance(), instance()], **fields)[0]["result"]]

    assert ids(seed="1:a.jpg") == ids(seed="1:a.jpg")
    assert not set(ids(seed="1:a.jpg")) & set(ids(seed="2:a.jpg"))
    assert not set(ids(seed="1:a.jpg")) & set(ids(seed="1:a.jpg", model_version="v2"))


def test_the_short_form_gives_the_same_prediction() -> None:
    config = parse_label_config(config_xml())
    short = instances_to_prediction(
        [instance()], config, width=60, height=40, model_version="v1", tolerance_px=0
    )
    assert short == predict([instance()], output=Output(tolerance_px=0))[0]


@pytest.mark.parametrize(
    ("scores", "uncertainties", "expected"),
    [
        ([], [], 0.0),
        ([0.8], [0.0], 0.8),
        ([0.8], [0.5], 0.4),
        ([1.0, 0.5], [0, 0], 0.625),  # the mean of 0.75 and 0.5
        ([1.0], [math.nan], 0.0),
        ([1.0], [7.0], 0.0),
        ([7.0], [-1.0], 1.0),
    ],
)
def test_certainty(scores: list[float], uncertainties: list[float], expected: float) -> None:
    pairs = zip(scores, uncertainties, strict=True)
    assert certainty([instance(score=s, uncertainty=u) for s, u in pairs]) == expected


def test_masks_of_another_size_are_an_error() -> None:
    with pytest.raises(RegionError, match=r"\(40, 60\), expected \(60, 40\)"):
        predict([instance()], width=40, height=60)


def test_unsupported_configs_are_an_error_with_their_reason() -> None:
    with pytest.raises(LabelConfigError, match="no <Image"):
        build_prediction([], parse_label_config("<View/>"), width=6, height=4, model_version="v")


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "circle"},
        {"holes": "fill"},
        {"tolerance_px": -1},
        {"tolerance_px": math.nan},
        {"max_vertices": 2},
        {"min_area_px": math.inf},
        {"max_regions": 0},
        {"shared_edges": 1},
        {"score_threshold": 1.1},
    ],
)
def test_settings_out_of_range_are_named(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(RegionError, match=f"{name} is .* expected"):
        Output(**bad)


def test_digests_tell_settings_apart() -> None:
    assert Output().digest() == Output().digest() != Output(tolerance_px=2).digest()


def recorded_tasks() -> dict[tuple[str, int], dict[str, Any]]:
    """Tasks of recorded /predict requests, by label config and id."""
    found = {}
    for path in sorted(RECORDINGS.glob("*.json")):
        for exchange in json.loads(path.read_text()).get("exchanges", []):
            if exchange["request"]["path"] == "/predict":
                body = exchange["request"]["json"]
                found.update({(body["label_config"], task["id"]): task for task in body["tasks"]})
    return found


@pytest.mark.parametrize("kind", ["auto", "all"])
def test_every_recorded_task_gets_a_valid_answer(kind: Any) -> None:
    tasks = recorded_tasks()
    assert len(tasks) > 10
    for (label_config, task_id), task in tasks.items():
        prediction, report = predict(
            [instance(label="Person"), instance(label="zebra")],
            label_config,
            output=Output(kind=kind),
            seed=f"{task_id}:{task['data']['image']}",
        )
        assert report.shown == 1
        assert prediction["result"]


@given(
    hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)),
    st.sampled_from(["polygon", "brush"]),
)
def test_exact_regions_come_back_as_the_same_mask(mask_hw: np.ndarray, kind: Any) -> None:
    height, width = mask_hw.shape
    output = replace(EXACT, kind=kind)
    prediction, report = predict([instance(mask_hw)], width=width, height=height, output=output)
    if not mask_hw.any():
        assert report.dropped == {Report.TOO_SMALL: 1}
        return
    stored = json.loads(json.dumps(prediction["result"]))
    (found,) = regions_to_objects(stored).objects
    assert np.array_equal(found.mask_hw, mask_hw)


@pytest.mark.parametrize("size", [(640, 426), (4031, 3023), (333, 9999)])
def test_odd_sizes_lose_nothing_in_percent(size: tuple[int, int]) -> None:
    width, height = size
    mask_hw = np.zeros((height, width), dtype=bool)
    rng = np.random.default_rng(7)
    mask_hw[-60:, -50:] = rng.random((60, 50)) < 0.8
    prediction, _ = predict([instance(mask_hw)], width=width, height=height, output=EXACT)
    (found,) = regions_to_objects(prediction["result"]).objects
    assert np.array_equal(found.mask_hw, mask_hw)


def test_the_default_tolerance_stays_close() -> None:
    disc = np.hypot(*np.mgrid[-200:200, -200:200]) < 150
    disc &= ~(np.hypot(*np.mgrid[-200:200, -200:200]) < 60)
    prediction, _ = predict([instance(disc)], width=400, height=400)
    (found,) = regions_to_objects(prediction["result"]).objects
    assert (found.mask_hw & disc).sum() / (found.mask_hw | disc).sum() > 0.98
