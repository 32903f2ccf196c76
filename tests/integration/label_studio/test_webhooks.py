"""Recorded and malformed webhook events."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.label_studio.webhooks import (
    AnnotationRef,
    AnnotationsChanged,
    AnnotationsDeleted,
    ProjectUpdated,
    TasksChanged,
    TrainingRequested,
    UnknownEvent,
    WebhookError,
    parse_event,
)

RECORDINGS = Path(__file__).parents[2] / "recordings"


def bodies(prefix: str) -> list[Any]:
    return [
        exchange["request"]["json"]
        for path in sorted(RECORDINGS.glob(f"{prefix}*.json"))
        for exchange in json.loads(path.read_text()).get("exchanges", [])
        if exchange["request"]["path"] == "/webhook"
    ]


def test_every_recorded_event_is_understood() -> None:
    events = [parse_event(body) for body in bodies("")]
    assert len(events) > 15
    assert not [event for event in events if isinstance(event, UnknownEvent)]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("40", AnnotationsChanged("ANNOTATION_CREATED", 1, (AnnotationRef(24, 2),))),
        ("41", AnnotationsChanged("ANNOTATION_CREATED", 1, (AnnotationRef(31, 1),))),
        ("42", AnnotationsChanged("ANNOTATION_UPDATED", 1, (AnnotationRef(24, 2),))),
        ("43", AnnotationsChanged("ANNOTATION_CREATED", 1, (AnnotationRef(25, 3, was_cancelled=True),))),
        ("44", AnnotationsDeleted("ANNOTATIONS_DELETED", 1, (25,))),
        ("45", AnnotationsChanged("ANNOTATION_UPDATED", 1, (AnnotationRef(24, 2, ground_truth=True),))),
        ("46", TasksChanged("TASKS_CREATED", 1, (19, 20))),
        ("47", TasksChanged("TASKS_DELETED", 1, (19, 20))),
        ("48", AnnotationsChanged("ANNOTATIONS_CREATED", 1, (AnnotationRef(26, 5),))),
    ],
)
def test_recorded_events(prefix: str, expected: object) -> None:
    assert parse_event(bodies(prefix)[0]) == expected


def test_projects_come_with_their_label_config() -> None:
    updated, training = parse_event(bodies("49")[0]), parse_event(bodies("50")[0])
    assert isinstance(updated, ProjectUpdated)
    assert 'value="dog"' in updated.label_config
    assert isinstance(training, TrainingRequested)
    assert "<PolygonLabels" in training.label_config


def test_unknown_actions_are_no_error() -> None:
    assert parse_event({"action": "LABEL_LINK_CREATED", "project": {"id": 4}}) == UnknownEvent("LABEL_LINK_CREATED", 4)
    assert parse_event({"action": "NEW"}) == UnknownEvent("NEW", None)


PROJECT = {"id": 1}


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (None, "must be a JSON object"),
        ([], "must be a JSON object"),
        ({}, "must name its action"),
        ({"action": 5}, "must name its action"),
        ({"action": "START_TRAINING"}, "project.id"),
        ({"action": "START_TRAINING", "project": {"id": "1"}}, "project.id"),
        ({"action": "START_TRAINING", "project": {"id": True}}, "project.id"),
        ({"action": "START_TRAINING", "project": {"id": -1}}, "project.id"),
        ({"action": "START_TRAINING", "project": {"id": 10**18}}, "project.id"),
        ({"action": "ANNOTATION_CREATED", "project": PROJECT}, "annotation must be"),
        ({"action": "ANNOTATION_CREATED", "project": PROJECT, "annotation": {}}, "annotation.id"),
        ({"action": "ANNOTATION_CREATED", "project": PROJECT, "annotation": {"id": 1}}, "annotation.task"),
        ({"action": "ANNOTATIONS_CREATED", "project": PROJECT, "annotation": [1]}, "annotation must be"),
        ({"action": "TASKS_DELETED", "project": PROJECT, "tasks": [{}]}, "tasks\\[\\].id"),
    ],
)
def test_malformed_events_say_what_is_missing(payload: object, words: str) -> None:
    with pytest.raises(WebhookError, match=words):
        parse_event(payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "task"]), inner),
    max_leaves=5,
)
ACTIONS = st.sampled_from(["ANNOTATION_CREATED", "ANNOTATIONS_DELETED", "TASKS_CREATED", "PROJECT_UPDATED", ""])


@given(st.dictionaries(st.sampled_from(["project", "annotation", "annotations", "tasks"]), JSON), ACTIONS | JSON)
def test_any_event_is_read_or_refused(payload: dict[str, Any], action: object) -> None:
    with contextlib.suppress(WebhookError):
        parse_event({**payload, "action": action})
