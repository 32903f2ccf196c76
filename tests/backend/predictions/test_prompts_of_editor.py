"""What an editor's context means: boxes, clicks, masks so far, labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backend.predictions.prompts import read_prompt
from integration.label_studio.label_config import parse_label_config

RECORDINGS = Path(__file__).parents[2] / "recordings"
CONFIG = parse_label_config(
    """<View><Image name="image" value="$image"/><KeyPointLabels name="kp" toName="image" smart="true">
    <Label value="leaf"/><Label value="person"/></KeyPointLabels>
    <BrushLabels name="brush" toName="image"><Label value="leaf"/><Label value="person"/></BrushLabels></View>"""
)


def click(x: float, y: float, **more: Any) -> dict[str, Any]:
    return {"id": "k", "type": "keypointlabels", "value": {"x": x, "y": y, "width": 0.5}, **more}


BOX = {"id": "b", "type": "rectanglelabels", "value": {"x": 10, "y": 20, "width": 30, "height": 40}}


@pytest.mark.parametrize(
    ("entries", "box", "points"),
    [
        ([BOX], [10, 20, 40, 60], []),
        ([click(1, 2)], None, [(1, 2, True)]),  # absent: positive
        ([click(1, 2, is_positive=True), click(3, 4, is_positive=False)], None, [(1, 2, True), (3, 4, False)]),
        ([click(1, 2), BOX], [10, 20, 40, 60], []),  # a newer box is a new object
        ([BOX, click(3, 4, is_positive=False)], [10, 20, 40, 60], [(3, 4, False)]),
    ],
)
def test_prompts_are_read(entries: list[dict[str, Any]], box: list[float] | None, points: list[Any]) -> None:
    prompt = read_prompt({"result": entries}, CONFIG)
    assert prompt is not None
    assert (prompt["box_pct"], prompt["points_pct"]) == (box, points)


@pytest.mark.parametrize("entries", [[], [click(3, 4, is_positive=False)], [{"value": {"choices": ["a"]}}], ["x"]])
def test_nothing_that_points_at_a_place_is_no_prompt(entries: list[Any]) -> None:
    assert read_prompt({"result": entries}, CONFIG) is None


@pytest.mark.parametrize(
    ("value", "label"),
    [({"keypointlabels": ["person"]}, "person"), ({"labels": ["person"]}, "person"), ({"labels": ["no such"]}, "leaf")],
)
def test_the_annotators_label_counts(value: dict[str, Any], label: str) -> None:
    entry = click(1, 2)
    entry["value"] |= value
    prompt = read_prompt({"result": [entry]}, CONFIG)
    assert prompt is not None
    assert prompt["label"] == label


@pytest.mark.parametrize("name", ["14_interactive_api", "15_interactive_ui_rectangle"])
def test_recorded_contexts_are_prompts(name: str) -> None:
    exchanges = json.loads((RECORDINGS / f"{name}.json").read_text())["exchanges"]
    contexts = [e["request"]["json"]["params"]["context"] for e in exchanges if e["request"]["path"] == "/predict"]
    contexts = [context for context in contexts if context]
    assert contexts
    assert all(read_prompt(context, CONFIG) for context in contexts)
