"""Recorded and malformed webhook events."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.label_studio.webhooks import OF_PROJECTS, START_TRAINING, Event, WebhookError, parse_event

RECORDINGS = Path(__file__).parents[2] / "recordings"


def bodies(prefix: str) -> list[Any]:
    return [
        exchange["request"]["json"]
        for path in sorted(RECORDINGS.glob(f"{prefix}*.json"))
        for exchange in json.loads(path.read_text()).get("exchanges", [])
        if exchange["request"]["path"] == "/webhook"
    ]


def test_every_recorded_event_is_of_a_project() -> None:
    events = [parse_event(body) for body in bodies("")]
    assert len(events) > 15
    assert {event.action for event in events} <= OF_PROJECTS
    assert all(event.project_id for event in events)


def test_the_button_is_recorded() -> None:
    assert parse_event(bodies("50")[0]).action == START_TRAINING


def test_unknown_actions_are_no_error() -> None:
    assert parse_event({"action": "LABEL_LINK_CREATED", "project": {"id": 4}}) == Event("LABEL_LINK_CREATED", 4)
    assert parse_event({"action": "NEW"}) == Event("NEW", None)


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
        ({"action": "TASKS_DELETED", "project": 5}, "project.id"),
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
