"""What an editor's context means: boxes, clicks, strokes, labels, and clicks about an earlier box."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from integration.label_studio.label_config import Output, parse_label_config
from integration.label_studio.prompts import (
    EarlierPrompt,
    PromptError,
    PromptFields,
    read_prompt,
    require_place,
    with_earlier,
)
from integration.regions.prompts import build_answer, prompt_in_pixels
from model.instance import Instance

RECORDINGS = Path(__file__).parents[2] / "recordings"
LABELS = '<Label value="leaf"/><Label value="person" alias="p"/>'
CONFIG = parse_label_config(
    f"""<View><Image name="image" value="$image"/>
    <KeyPointLabels name="kp" toName="image" smart="true">{LABELS}<Label value="nose"/></KeyPointLabels>
    <BrushLabels name="brush" toName="image">{LABELS}</BrushLabels></View>"""
)
PAIRED = parse_label_config(
    f"""<View><Image name="image" value="$image"/><Labels name="label" toName="image">{LABELS}</Labels>
    <Polygon name="polygon" toName="image"/><Brush name="brush" toName="image"/></View>"""
)


def click(x: float, y: float, is_positive: bool | None = True, name: str = "", **value: Any) -> dict[str, Any]:
    sign = {} if is_positive is None else {"is_positive": is_positive}
    shape = {"x": x, "y": y, "width": 0.5, "keypointlabels": ["leaf"], **value}
    return {"id": name or f"click {x} {y}", "type": "keypointlabels", "value": shape, **sign}


def box(**value: Any) -> dict[str, Any]:
    shape = {"x": 10, "y": 20, "width": 30, "height": 40, "rectanglelabels": ["leaf"], **value}
    return {"id": "b", "type": "rectanglelabels", "original_width": 200, "original_height": 100, "value": shape}


def fields(*entries: dict[str, Any]) -> PromptFields:
    prompt = read_prompt({"result": list(entries)}, CONFIG)
    assert prompt is not None
    return prompt


@pytest.mark.parametrize(
    ("entries", "expected_box", "points"),
    [
        ([box()], [10, 20, 40, 60], []),
        ([click(1, 2, None)], None, [(1, 2, True)]),  # no mark at all: a client of another kind means the object
        ([click(1, 2), click(3, 4, False)], None, [(1, 2, True), (3, 4, False)]),
        ([click(9, 9, None), click(3, 4)], None, [(3, 4, True)]),  # without the mark beside others: an annotation
        ([click(1, 2), box()], [10, 20, 40, 60], []),  # a newer box is a new object
        ([box(), click(3, 4, False)], [10, 20, 40, 60], [(3, 4, False)]),
        ([click(3, 4, False)], None, [(3, 4, False)]),
        # A turned box: 90 degrees clockwise about its corner, in pixels of an image twice as wide as high.
        ([box(x=50, y=20, width=10, height=40, rotation=90)], [30, 20, 50, 40], []),
        # With a control of its own for labels, geometry and label are two entries of one id.
        ([click(1, 2, name="k"), {**click(1, 2, name="k"), "type": "labels"}], None, [(1, 2, True)]),
    ],
)
def test_prompts_are_read(entries: list[dict[str, Any]], expected_box: list[float] | None, points: list[Any]) -> None:
    prompt = fields(*entries)
    assert prompt["points_pct"] == points
    assert prompt["box_pct"] == (expected_box and pytest.approx(expected_box))


@pytest.mark.parametrize("entries", [[], [{"value": {"choices": ["a"]}}], ["x"], [{"value": {"x": "a", "y": 1}}]])
def test_nothing_that_points_at_a_place_is_no_prompt(entries: list[Any]) -> None:
    assert read_prompt({"result": entries}, CONFIG) is None


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ({"keypointlabels": ["person"]}, "p"),  # results spell a label by its alias
        ({"keypointlabels": ["p"]}, "p"),
        ({"keypointlabels": ["leaf"]}, "leaf"),
        ({"keypointlabels": None, "labels": ["person"]}, "p"),
        ({"keypointlabels": None}, "leaf"),
    ],
)
def test_the_annotators_label_counts(value: dict[str, Any], label: str) -> None:
    assert fields(click(1, 2, **value))["label"] == label


def test_a_label_that_no_outline_can_have_is_an_error() -> None:
    with pytest.raises(PromptError, match=r"'nose'.*BrushLabels"):
        fields(click(1, 2, keypointlabels=["nose"]))


@pytest.mark.parametrize("name", ["14_interactive_api", "15_interactive_ui_rectangle"])
def test_recorded_contexts_are_prompts(name: str) -> None:
    config = parse_label_config(
        """<View><Image name="image" value="$image"/><PolygonLabels name="poly" toName="image">
        <Label value="person"/><Label value="car"/></PolygonLabels></View>"""
    )
    exchanges = json.loads((RECORDINGS / f"{name}.json").read_text())["exchanges"]
    contexts = [e["request"]["json"]["params"]["context"] for e in exchanges if e["request"]["path"] == "/predict"]
    contexts = [context for context in contexts if context]
    assert contexts
    assert all(read_prompt(context, config) for context in contexts)


def ask(
    earlier: EarlierPrompt | None, *entries: dict[str, Any], saved_ids: tuple[str, ...] = ()
) -> tuple[PromptFields | None, EarlierPrompt | None]:
    prompt, remembered = with_earlier(read_prompt({"result": list(entries)}, CONFIG), earlier, frozenset(saved_ids))
    return prompt, {**remembered, "answer_ids": ["a"]} if remembered else None


BOX = [10, 20, 40, 60]
INSIDE, OUTSIDE, WRONG = click(20, 30), click(80, 30), click(39, 59, False)


@pytest.mark.parametrize(
    ("contexts", "expected_box", "points", "region"),
    [
        pytest.param([[box()], [WRONG]], BOX, [(39, 59, False)], "b", id="a negative click after a box"),
        pytest.param([[box()], [INSIDE]], BOX, [(20, 30, True)], "b", id="a positive click in it"),
        pytest.param([[box()], [OUTSIDE]], None, [(80, 30, True)], OUTSIDE["id"], id="elsewhere: a new object"),
        pytest.param(
            [[box()], [WRONG], [WRONG, OUTSIDE]], BOX, [(39, 59, False), (80, 30, True)], "b", id="more clicks"
        ),
        pytest.param([[box()], [WRONG, INSIDE], [INSIDE]], BOX, [(20, 30, True)], "b", id="one taken back"),
        pytest.param([[box()], [WRONG], []], BOX, [], "b", id="all taken back"),
        pytest.param([[INSIDE], [INSIDE, WRONG]], None, [(20, 30, True), (39, 59, False)], INSIDE["id"], id="clicks"),
        # Accepted by itself, so that the editor dropped the click: a negative one still is about the same object.
        pytest.param([[INSIDE], [WRONG]], None, [(20, 30, True), (39, 59, False)], INSIDE["id"], id="auto-accept"),
        pytest.param(
            [[box()], [click(39, 59, False, keypointlabels=["person"])]], None, [(39, 59, False)], None, id="label"
        ),
    ],
)
def test_clicks_belong_to_what_was_asked_before(
    contexts: list[list[dict[str, Any]]], expected_box: list[float] | None, points: list[Any], region: str | None
) -> None:
    prompt, earlier = None, None
    for entries in contexts:
        prompt, earlier = ask(earlier, *entries)
        earlier = json.loads(json.dumps(earlier))  # as it comes back from the queue server
    assert prompt is not None
    assert (prompt["box_pct"], [tuple(point) for point in prompt["points_pct"]]) == (expected_box, points)
    assert region is None or prompt["region"] == region


def test_a_click_in_an_accepted_box_is_a_new_object() -> None:
    _, earlier = ask(None, box())
    prompt, _ = ask(earlier, INSIDE, saved_ids=("a",))
    assert prompt is not None
    assert prompt["box_pct"] is None


@pytest.mark.parametrize("entries", [[], [WRONG]])
def test_nothing_to_go_by_says_what_to_do(entries: list[dict[str, Any]]) -> None:
    with pytest.raises(PromptError, match="draw a box"):
        require_place(ask(None, *entries)[0])


def test_boxes_are_cut_to_the_image() -> None:
    prompt = prompt_in_pixels(fields(box(x=-10, width=30)), (100, 200))
    assert prompt.box_xyxy == (0, 20, 40, 60)


def disc() -> Instance:
    y, x = np.ogrid[:100, :200]
    mask = (x - 60) ** 2 + (y - 50) ** 2 < 20**2
    return Instance((40.0, 30.0, 80.0, 70.0), "thing", 0.1, mask)


def answer(prompt: PromptFields, instance: Instance, config: Any = CONFIG, **output: Any) -> dict[str, Any]:
    size = {"width": 200, "height": 100, "model_version": "v"}
    return build_answer(instance, prompt, config, **size, output=Output(score_threshold=0.5, **output), seed="1")


def stroke() -> dict[str, Any]:
    region = answer(fields(click(1, 2)), disc())["result"][0]
    return {**region, "id": "s"}


def test_a_brush_stroke_is_clicks_on_it() -> None:
    prompt = prompt_in_pixels(fields(stroke()), (100, 200))
    assert prompt.mask_hw is None
    assert len(prompt.points) > 1
    assert all(disc().mask_hw[int(y), int(x)] and sign for x, y, sign in prompt.points)


@pytest.mark.parametrize("output", [{}, {"kind": "all"}, {"parts": "separate"}, {"min_area_px": 1e6}])
@pytest.mark.parametrize("config", [CONFIG, PAIRED])
def test_the_answer_is_one_region_with_the_annotators_label(config: Any, output: dict[str, Any]) -> None:
    two_parts = disc()
    two_parts.mask_hw[45:55, 150:170] = True
    prompt = fields(click(1, 2, keypointlabels=["person"]))
    result = answer(prompt, two_parts, config, **output)["result"]
    assert len({region["id"] for region in result}) == 1
    assert len(result) == 1 + (config is PAIRED)
    assert [region["value"].get("brushlabels") or region["value"].get("labels") for region in result][-1] == ["p"]
    assert all(region["score"] == 0.1 for region in result)


def test_the_kind_is_what_the_annotator_draws_with() -> None:
    prompt = read_prompt({"result": [{**stroke(), "value": {**stroke()["value"], "labels": ["leaf"]}}]}, PAIRED)
    assert prompt is not None
    assert answer(prompt, disc(), PAIRED)["result"][0]["type"] == "brush"
    assert answer(fields(box()), disc(), PAIRED)["result"][0]["type"] == "polygon"


def test_answers_about_one_object_have_one_id() -> None:
    first, earlier = ask(None, box())
    second, _ = ask(earlier, WRONG)
    other, _ = ask(None, OUTSIDE)
    assert first
    assert second
    assert other
    ids = [answer(prompt, disc())["result"][0]["id"] for prompt in (first, second, other)]
    assert ids[0] == ids[1] != ids[2]
