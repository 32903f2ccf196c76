"""Which instances become regions, under which settings, and what is said of those left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from integration.label_studio.label_config import LabelConfigError, Output, parse_label_config
from integration.regions.write import Reason, build_prediction, certainty
from model.instance import Instance
from tests.support.regions import LABELS, config_xml, instance, predict


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
def test_thresholds_label_before_control_before_setting(labels: str, control: str, default: float, shown: int) -> None:
    instances = [instance(score=score) for score in (0.3, 0.9, 0.6)]
    output = Output(score_threshold=default, double_iou=1)
    prediction, report = predict(instances, config_xml(labels, control), output=output)
    assert report.shown == shown
    assert report.dropped[Reason.LOW_SCORE] == 3 - shown
    scores = [region["score"] for region in prediction["result"]]
    assert scores == sorted(scores, reverse=True)


def test_more_than_the_limit_keeps_the_best_and_says_so() -> None:
    whole = np.ones((40, 60), bool)
    instances = [instance(whole, score=score) for score in (0.1, 0.9, 0.5, 0.7)]
    prediction, report = predict(instances, config_xml(control='model_max_regions="2"'), output=Output(double_iou=1))
    assert [region["score"] for region in prediction["result"]] == [0.9, 0.7]
    assert report.dropped == {Reason.OVER_LIMIT: 2}
    assert prediction["result"][0]["meta"]["text"] == [
        "2 more objects were found and left out: the limit of regions is reached."
    ]


def test_a_region_says_one_sentence() -> None:
    comb = np.zeros((40, 60), bool)
    comb[::2] = True
    config = config_xml(control='model_max_regions="1" model_max_vertices="8"')
    prediction, _ = predict([instance(comb), instance(comb)], config, output=Output(double_iou=1, parts="separate"))
    assert prediction["result"]
    assert all(len(region["meta"]["text"]) == 1 for region in prediction["result"] if "meta" in region)
    assert len(prediction["result"][0]["meta"]["text"]) == 1


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
    assert report.dropped == {Reason.NO_LABEL: 1, Reason.TOO_SMALL: 2, Reason.NOT_A_NUMBER: 2}


def test_control_attributes_win_over_settings() -> None:
    disc = np.hypot(*np.mgrid[-20:20, -30:30]) < 15
    fine, _ = predict([instance(disc)], config_xml(control='model_tolerance_px="0"'), output=Output())
    coarse, _ = predict([instance(disc)], output=Output(tolerance_px=3))
    assert len(coarse["result"][0]["value"]["points"]) < len(fine["result"][0]["value"]["points"])
    _, report = predict([instance(disc)], config_xml(control='model_min_area="2000"'))
    assert report.dropped == {Reason.TOO_SMALL: 1}


def test_boxes_enclose_the_mask_and_fall_back_to_the_detection() -> None:
    xml = config_xml()
    output = Output(kind="rectangle", min_part_share=0, min_hole_share=0, border_px=0)
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
    assert report.dropped == {Reason.TOO_SMALL: 1}


def test_equal_predictions_are_equal_and_other_tasks_have_other_ids() -> None:
    def ids(**fields: Any) -> list[str]:
        return [region["id"] for region in predict([instance(), instance()], **fields)[0]["result"]]

    assert ids(seed="1:a.jpg") == ids(seed="1:a.jpg")
    assert not set(ids(seed="1:a.jpg")) & set(ids(seed="2:a.jpg"))
    assert not set(ids(seed="1:a.jpg")) & set(ids(seed="1:a.jpg", model_version="v2"))


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
        {"min_part_share": 1.1},
        {"min_hole_share": -0.1},
        {"border_px": 17},
        {"parts": "many"},
        {"outline": "wavy"},
        {"double_iou": 0},
        {"shared_edges": 1},
        {"score_threshold": 1.1},
    ],
)
def test_settings_out_of_range_are_named(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ValidationError, match=name):
        Output(**bad)
