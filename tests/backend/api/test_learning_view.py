"""What the status page says of a project, and its charts."""

from __future__ import annotations

import re
import time

import pytest

from backend.api.learning import Series, line_chart, project_view, ticks
from backend.settings import Settings

RUN = {
    "id": "r1",
    "number": 1,
    "state": "promoted",
    "trigger": "button",
    "started_at": 100.0,
    "ended_at": 340.0,
    "snapshot_counts": {"images": 12, "objects": 41, "train_images": 10, "holdout_images": 2},
    "metrics": {"boundary_ap": 0.331, "mask_ap": 0.5},
    "before": {"boundary_ap": 0.1, "mask_ap": None},
    "reasons": ["better"],
    "error": "",
    "hint": "",
    "note": "",
    "order": "tasks are ordered by certainty",
    "stage_s": {"snapshot": 5.0, "finetune": 120.0, "gate": 60.0, "promote": 2.0},
    "losses": [[1, 3.0], [20, 1.0]],
}
NOW = {"run": "r2", "state": "running", "stage": "finetune", "of": 12, "iteration": 3, "eta_s": 58.0, "curve": []}


def view(settings: Settings | None = None, **facts: object) -> dict:
    base = {"id": "7", "looked": {"new": 3, "title": "Balloons"}, "rounds": [], "count": 0, "current": {}}
    return project_view(
        settings or Settings(), None, {**base, **facts}, waiting=0, trainers=facts.pop("trainers", ["t"]), busy=""
    )


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0.0, 1.0, False, [0.0, 0.5, 1.0]),
        (0.0, 33.1, False, [0.0, 10.0, 20.0, 30.0, 40.0]),
        (1, 1, True, [1.0, 2.0]),
        (1, 3, True, [1.0, 2.0, 3.0]),
        (0, 480, True, [0.0, 200.0, 400.0, 600.0]),
        (0.02, 0.07, False, [0.02, 0.04, 0.06, 0.08]),
    ],
)
def test_ticks_are_round_numbers_around_the_values(low, high, whole, expected):
    assert ticks(low, high, is_integer=whole) == pytest.approx(expected)


def test_a_chart_has_axes_a_legend_and_crosses_for_what_was_refused():
    series = [Series("a<b", [(1, 10.0), (2, 5.0)], frozenset({2})), Series("c", [(1, 20.0)])]
    chart = line_chart(series, x_label="round", y_label="AP", from_zero=True)
    assert chart.count('class="cross') == 1
    assert ">round</text>" in chart
    assert ">AP</text>" in chart
    assert "a&lt;b" in chart
    assert "a<b" not in chart
    assert line_chart([Series("loss", [(1, 2.0)])], x_label="step", y_label="loss") == "", "a point is no curve"


def test_a_round_says_how_many_objects_how_many_images_judge_and_what_changed():
    (round_view,) = view(rounds=[RUN], count=1)["rounds"]
    assert round_view["size"] == "12 images with 41 objects, 2 of them held out to judge by"
    assert round_view["scores"] == "boundary AP 10.0 → 33.1, mask AP 50.0"
    assert (round_view["minutes"], round_view["tone"]) == ("4 min", "good")
    assert (round_view["headlines"], round_view["texts"]) == (["better"], ["tasks are ordered by certainty"])
    assert "<polyline" in round_view["loss_chart"]


@pytest.mark.parametrize(
    ("now", "rounds", "says"),
    [
        pytest.param({}, [], "learns, step 3 of 12; about 58 s left, then it is judged", id="the first round"),
        pytest.param({}, [RUN], "learns, step 3 of 12; about 2 min left", id="as long as the round before"),
        pytest.param(
            {"stage": "gate", "of": 0},
            [RUN],
            "judges it on images that it did not learn from; about 62 s left",
            id="gate",
        ),
        pytest.param({"stage": "snapshot", "of": 0, "eta_s": None}, [], "known once it learns", id="nothing known yet"),
        pytest.param({"state": "queued", "stage": ""}, [], "waits for the training worker", id="queued"),
    ],
)
def test_what_a_training_does_and_how_long_it_will_take(now, rounds, says):
    now = {**NOW, "stage_since": time.time(), **now}
    if now["stage"] == "gate":
        now["eta_s"] = None
    current = view(current=now, rounds=rounds, count=len(rounds))["current"]
    assert says in current["doing"]
    assert current["number"] == len(rounds) + 1


def test_the_steps_of_a_round_are_marked():
    steps = view(current={**NOW, "stage": "publish"})["current"]["steps"]
    assert steps == [("collect", "done"), ("learn", "done"), ("judge", "now"), ("serve", "")]


@pytest.mark.parametrize(
    ("settings", "new", "says"),
    [
        ({}, 0, r"^0 annotation\(s\) .* It waits for annotations\.$"),
        ({}, 3, r"^3 annotation\(s\) .* Press Train now"),
        ({"train_after": 50}, 3, r"trains by itself at 50 annotations\.$"),
    ],
)
def test_what_it_waits_for(settings, new, says):
    project = view(Settings(**settings), looked={"new": new})
    assert re.search(says, project["waits_for"])
    assert project["name"] == "Project 7", "nobody has looked its name up yet"
