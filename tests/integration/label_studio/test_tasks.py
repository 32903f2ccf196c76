"""Exports of a real Label Studio as plain records, several annotators, and objects drawn twice."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.label_studio.label_config import parse_label_config
from integration.label_studio.notice import LONGEST, is_notice, notice
from integration.label_studio.tasks import SKIPPED, chosen_annotations, newest_time, read_task, used_labels
from integration.regions.read import AnnotatedObject, is_box, read_drawings, vote

RECORDINGS = Path(__file__).parents[2] / "recordings"


def recording(name: str) -> Any:
    (path,) = RECORDINGS.glob(f"{name}*.json")
    return json.loads(path.read_text())["data"]


def event(name: str) -> dict[str, Any]:
    (path,) = RECORDINGS.glob(f"{name}*.json")
    return json.loads(path.read_text())["exchanges"][0]["request"]["json"]


def region(region_id: str, label: str = "car", points: Any = None, **fields: Any) -> dict[str, Any]:
    value = {"points": points or [[10, 10], [50, 10], [50, 50], [10, 50]], "closed": True}
    return {
        "id": region_id,
        "type": "polygonlabels",
        "from_name": "poly",
        "to_name": "image",
        "original_width": 100,
        "original_height": 80,
        "value": {**value, "polygonlabels": [label]},
        **fields,
    }


def annotation(number: int, **fields: Any) -> dict[str, Any]:
    minute = fields.pop("minute", number)
    return {
        "id": number,
        "completed_by": 1,
        "result": [region("r")],
        "was_cancelled": False,
        "ground_truth": False,
        "updated_at": f"2026-11-22T10:{minute:02d}:00Z",
        "lead_time": 5.0,
        **fields,
    }


def test_the_json_export() -> None:
    task, skipped_task = (read_task(row) for row in recording("70_"))
    (annotation,) = task.annotations
    assert (task.id, annotation.id, annotation.annotator, annotation.lead_time_s, annotation.ground_truth) == (
        25,
        29,
        "1",
        33.3,
        False,
    )
    assert annotation.updated_at == datetime(2026, 11, 22, 9, 25, 32, 931587, UTC)
    assert (annotation.prediction, len(annotation.result), task.file_name) == (None, 4, "d04995e1-000000008844.jpg")
    assert skipped_task.annotations == ()
    assert [(entry.annotation_id, entry.reason) for entry in skipped_task.left_out] == [(30, SKIPPED)]


@pytest.mark.parametrize(("name", "prediction_id"), [("62_", 740), ("63_", 741), ("65_", 200)])
def test_what_the_editor_submits_names_its_prediction(name: str, prediction_id: int) -> None:
    (annotation,) = read_task(recording(name)).annotations
    assert annotation.prediction is not None
    assert (annotation.prediction.id, annotation.prediction.model_version) == (prediction_id, "v1")
    assert {r["id"] for r in annotation.result} <= {r["id"] for r in annotation.prediction.result}


def test_the_copy_of_the_prediction_is_used_where_there_is_one() -> None:
    webhook = event("56_")
    (annotation,) = read_task({**webhook["task"], "annotations": [webhook["annotation"]]}).annotations
    assert annotation.prediction is not None
    assert (annotation.prediction.id, annotation.prediction.model_version, annotation.prediction.score) == (
        743,
        "d1",
        0.9,
    )


def test_a_predicted_vector_that_the_editor_opened_is_closed_again() -> None:
    vertices = [{"x": x, "y": y} for x, y in ((10, 10), (50, 10), (50, 50))]
    values = [{"vertices": vertices, "closed": closed, "vectorlabels": ["car"]} for closed in (True, False)]
    predicted_region = region("a", value=values[0])
    opened_region, new_region = region("a", value=values[1]), region("b", value=values[1])
    row = {"id": 1, "data": {}, "predictions": [{"id": 3, "result": [predicted_region]}]}
    (submitted,) = read_task({**row, "annotations": [annotation(9, result=[opened_region, new_region])]}).annotations
    assert [entry["value"]["closed"] for entry in submitted.result] == [True, False]


OLD = {"id": 3, "model_version": "v0", "score": 0.2, "result": [region("r"), region("s")]}
NEW = {"id": 4, "model_version": "v1", "score": 0.4, "result": [region("t"), region("u")]}


@pytest.mark.parametrize(
    ("fields", "predictions", "expected"),
    [
        ({"parent_prediction": 4}, [OLD, NEW], 4),
        ({"parent_prediction": "4"}, [OLD, {**NEW, "id": "4"}], 4),
        ({"parent_prediction": {"id": 3}}, [OLD, NEW], 3),
        ({"prediction": OLD}, [], 3),
        ({"prediction": {}, "parent_prediction": None}, [OLD, NEW], 3),  # shares a region id
        ({"prediction": {}, "parent_prediction": 99}, [NEW], None),  # deleted since, and nothing is shared
        ({}, [3, 4], None),  # ids only, as the JSON export has them
        ({"prediction": {}, "result": [region("mine")]}, [OLD, NEW], None),
    ],
)
def test_where_an_annotation_came_from(fields: dict[str, Any], predictions: list[Any], expected: int | None) -> None:
    row = {"id": 1, "data": {}, "annotations": [annotation(9, **fields)], "predictions": predictions}
    (submitted,) = read_task(row).annotations
    assert (submitted.prediction.id if submitted.prediction else None) == expected


def test_predictions_may_be_given_beside_the_export() -> None:
    row = {"id": 1, "data": {}, "annotations": [annotation(9, parent_prediction=4)], "predictions": [4]}
    (submitted,) = read_task(row, predictions={4: {**NEW, "task": 1}}).annotations
    assert submitted.prediction is not None
    assert submitted.prediction.model_version == "v1"
    (other,) = read_task({**row, "annotations": [annotation(9)]}, predictions={3: {**OLD, "task": 2}}).annotations
    assert other.prediction is None  # the same region id in another task means nothing


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"was_cancelled": True}, SKIPPED),
        ({"result": None}, "its result is NoneType"),
        ({"result": "x"}, "its result is str"),
    ],
)
def test_annotations_that_do_not_count_are_told(bad: dict[str, Any], reason: str) -> None:
    row = {"id": 7, "data": {}, "annotations": [annotation(1), {**annotation(2), **bad}, "nonsense"]}
    task = read_task(row)
    assert [annotation.id for annotation in task.annotations] == [1]
    assert [left.task_id for left in task.left_out] == [7, 7]
    assert task.left_out[0].reason.startswith(reason)


@pytest.mark.parametrize(
    ("rows", "how", "expected"),
    [
        ([annotation(1), annotation(2)], "latest", [2]),
        ([annotation(1, minute=9), annotation(2)], "latest", [1]),  # submitted again
        ([annotation(1, minute=5), annotation(2, minute=5)], "latest", [2]),
        ([annotation(1, ground_truth=True), annotation(2)], "latest", [1]),
        ([annotation(1, ground_truth=True), annotation(2, completed_by=2)], "agreement", [1]),
        ([annotation(1), annotation(2), annotation(3, completed_by=2)], "agreement", [2, 3]),
        ([annotation(1, completed_by=None), annotation(2, completed_by=None)], "agreement", [1, 2]),
        ([annotation(1, completed_by={"id": 5}), annotation(2, completed_by=5)], "agreement", [2]),
        ([], "latest", []),
    ],
)
def test_which_annotations_count(rows: list[Any], how: Any, expected: list[int]) -> None:
    task = read_task({"id": 1, "data": {}, "annotations": rows})
    assert [chosen_annotation.id for chosen_annotation in chosen_annotations(task.annotations, how)] == expected


def test_times_and_labels() -> None:
    rows = [annotation(1), annotation(2, updated_at="yesterday"), annotation(3, updated_at="2026-11-22T10:00:00.5Z")]
    task = read_task({"id": 1, "data": {}, "annotations": rows})
    assert [annotation.id for annotation in task.annotations] == [2, 3, 1]  # without a date counts as the oldest
    assert newest_time(task.annotations) == datetime(2026, 11, 22, 10, 1, tzinfo=UTC)
    assert newest_time([]) is None
    assert used_labels({"annotations": [annotation(1, result=[region("a", "x"), {"type": "choices"}])]}) == {"x"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ENTRY = st.fixed_dictionaries({}, optional=dict.fromkeys((*annotation(1), "parent_prediction", "prediction"), JSON))


@settings(max_examples=80)
@given(st.fixed_dictionaries({"annotations": st.lists(ENTRY, max_size=3) | JSON, "predictions": JSON, "id": JSON}))
def test_any_row_is_read(row: dict[str, Any]) -> None:
    task = read_task(row)
    given_list = row["annotations"]
    count = len(given_list) if isinstance(given_list, list) else int(given_list is not None)
    assert len(task.annotations) + len(task.left_out) == count
    used_labels(row)


# Several annotators


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask_hw = np.zeros((40, 50), bool)
    mask_hw[top:bottom, left:right] = True
    return mask_hw


def drawn(label: str, mask_hw: np.ndarray, region_id: str = "r") -> AnnotatedObject:
    return AnnotatedObject(label, mask_hw, (region_id,), ("polygon",))


A, SHIFTED, WIDER, ELSEWHERE = box(5, 5, 25, 25), box(7, 5, 27, 25), box(5, 5, 29, 25), box(30, 30, 45, 38)


@pytest.mark.parametrize(
    ("drawings", "labels", "disputed"),
    [
        # what three annotators drew, labels agreed on, labels of disputed ones
        ([[("cat", A)], [("cat", SHIFTED)], [("cat", A)]], ["cat"], []),
        ([[("cat", A)], [("cat", A)], []], ["cat"], []),
        ([[("cat", A)], [], []], [], ["cat"]),
        ([[("cat", A)], [("dog", A)], [("cat", A)]], ["cat"], []),
        ([[("cat", A)], [("dog", A)], [("bird", A)]], [], ["bird"]),
        ([[("cat", A)], [("cat", A), ("cat", ELSEWHERE)], [("cat", A)]], ["cat"], ["cat"]),
        ([[("cat", A)], [("dog", A)]], [], ["dog"]),  # two annotators: half is no majority
        ([[("cat", A)], [("cat", A)]], ["cat"], []),
        ([[("cat", A)], []], [], ["cat"]),
        ([[], [], []], [], []),
    ],
)
def test_the_majority_decides(drawings: Any, labels: list[str], disputed: list[str]) -> None:
    consensus = vote([[drawn(*drawing) for drawing in drawings_of] for drawings_of in drawings])
    assert [drawing.label for drawing in consensus.objects] == labels
    assert [drawing.label for drawing in consensus.disputed] == disputed


def test_pixels_follow_the_majority_and_ties_the_latest() -> None:
    (three,) = vote([[drawn("cat", A)], [drawn("cat", SHIFTED)], [drawn("cat", WIDER, "last")]]).objects
    assert np.array_equal(three.mask_hw, (A & SHIFTED) | (A & WIDER) | (SHIFTED & WIDER))
    assert three.region_ids == ("last",)
    (two,) = vote([[drawn("cat", A)], [drawn("cat", SHIFTED)]]).objects
    assert np.array_equal(two.mask_hw, SHIFTED)  # neither shrunk nor grown


def test_neighbours_of_one_annotator_stay_two_objects() -> None:
    left, right = box(0, 0, 20, 20), box(18, 0, 40, 20)
    agreed = vote([[drawn("cat", left), drawn("cat", right)], [drawn("cat", right), drawn("cat", left)]])
    assert len(agreed.objects) == 2


masks = st.tuples(st.integers(0, 30), st.integers(0, 25), st.integers(1, 19), st.integers(1, 14)).map(
    lambda b: box(b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(max_examples=40)
@given(st.lists(st.lists(st.builds(drawn, st.sampled_from(["cat", "dog"]), masks), max_size=3), max_size=3))
def test_agreement_loses_no_object(drawings: list[list[AnnotatedObject]]) -> None:
    consensus = vote(drawings)
    count = sum(len(drawings_of) for drawings_of in drawings)
    assert len(consensus.objects) + len(consensus.disputed) <= count
    assert all(annotated_object.mask_hw.any() for annotated_object in consensus.objects)
    if len(drawings) == 1:
        assert len(consensus.objects) == count


# Objects in a result

BOTH = parse_label_config(
    '<View><Image name="image" value="$image"/><PolygonLabels name="poly" toName="image"><Label value="car"/>'
    '</PolygonLabels><RectangleLabels name="box" toName="image"><Label value="car"/></RectangleLabels>'
    '<Choices name="light" toName="image"><Choice value="day"/></Choices></View>'
)


def rectangle(region_id: str, **value: float) -> dict[str, Any]:
    corners = {"x": 10, "y": 10, "width": 40, "height": 40, **value}
    return region(region_id, type="rectanglelabels", from_name="box", value={**corners, "rectanglelabels": ["car"]})


CHOICE = {"id": "c", "type": "choices", "from_name": "light", "to_name": "image", "value": {"choices": ["day"]}}
NOTE = {"id": "p", "type": "textarea", "from_name": "note", "to_name": "image", "value": {"text": ["?"]}}


VIDEO = {"id": "v", "type": "videorectangle", "from_name": "film", "value": {"sequence": [], "labels": ["car"]}}


@pytest.mark.parametrize(
    ("result", "ids", "left_out"),
    [
        ([region("p"), CHOICE], ["p"], {"c": "outlines nothing"}),
        ([region("p"), VIDEO], ["p"], {"v": "outlines nothing"}),
        ([region("p"), NOTE], ["p"], {}),  # a text about an object is not an object that is lost
        ([region("p"), rectangle("b")], ["p"], {"b": "drawn as polygon"}),
        ([rectangle("b"), region("p")], ["p"], {"b": "drawn as polygon"}),
        ([region("p"), rectangle("b", x=55)], ["p", "b"], {}),
        ([region("p"), region("q")], ["p", "q"], {}),  # twice in one kind: two objects
        ([region("p", "bus")], [], {"p": "'bus' is not among"}),
        ([region("p", value={"points": [], "polygonlabels": ["car"]})], [], {"p": "at least 3"}),
        ([{"type": "relation", "from_id": "a", "to_id": "b"}, region("p")], ["p"], {}),
        ([], [], {}),
    ],
)
def test_objects_of_a_result(result: list[Any], ids: list[str], left_out: dict[str, str]) -> None:
    decoded = read_drawings(result, width=100, height=80, config=BOTH)
    assert [annotated_object.region_ids[0] for annotated_object in decoded.objects] == ids
    reasons = [*decoded.left_out, *decoded.notes]
    assert {region_id for region_id, _ in reasons} == set(left_out)
    assert all(left_out[region_id] in reason for region_id, reason in reasons)
    # Doubles and choices lose nothing.
    assert {region_id for region_id, _ in decoded.notes} <= {"b", "c"}


def test_a_box_is_known_as_a_box() -> None:
    polygon, only_box = read_drawings([region("p"), rectangle("b", x=55)], width=100, height=80).objects
    assert (is_box(polygon), is_box(only_box)) == (False, True)


def test_a_notice_is_no_prediction() -> None:
    sentence = notice("v1 knows none of: car. Annotate about 10", "http://localhost:9090/status")
    assert is_notice(sentence)
    assert len(notice("very " * 200, "http://localhost:9090/status")) <= LONGEST
    shown = {"id": 4, "model_version": sentence, "score": None, "result": []}
    copied = annotation(1, parent_prediction=4, prediction=shown)
    (read,) = read_task({"id": 1, "predictions": [shown], "annotations": [copied]}).annotations
    assert read.prediction is None, "what was drawn then corrects nothing"


@pytest.mark.parametrize("number", [None, "a-b", [1]])
def test_annotations_without_a_number_are_read_and_numbered_by_their_place(number: Any) -> None:
    row = {"id": 7, "data": {}, "annotations": [annotation(5), {**annotation(9), "id": number}]}
    task = read_task(row)
    assert ([entry.id for entry in task.annotations], task.left_out) == ([5, -2], ())


def test_old_exports_call_annotations_completions_and_ids_may_be_texts() -> None:
    task = read_task({"id": "7", "data": {}, "completions": [{**annotation(1), "id": "12"}]})
    assert (task.id, [entry.id for entry in task.annotations]) == (7, [12])
