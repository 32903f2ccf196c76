"""`transfiner evaluate --edits`: the three ways to draw in one run, and what a running API serves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backend.cli.main import cli
from backend.devtools.edit_plan import GoodOutline
from backend.devtools.edits import EditableObject, Edits
from backend.devtools.harness import label_config
from backend.devtools.simulated_edits import (
    BEFORE,
    LITERAL,
    OPENCV,
    PRACTISED,
    SERVED,
    click_vertices,
    drawers,
    edits_text,
    shown_regions,
    true_objects,
)
from integration.label_studio.label_config import Output, parse_label_config
from integration.regions.write import PART_BY_PART, build_prediction
from model.instance import Instance
from training.datasets import Sample

WEIGHTS = Path(__file__).parents[3] / "model" / "weights" / "scenes-small"


def two_parts() -> Instance:
    mask_hw = np.zeros((60, 80), bool)
    mask_hw[10:50, 5:30] = mask_hw[10:50, 40:75] = True
    return Instance((5, 10, 75, 50), "key", 0.9, mask_hw)


@pytest.mark.parametrize(("output", "count"), [(Output(), 1), (PART_BY_PART, 2), (Output(kind="rectangle"), 1)])
def test_regions_are_counted_as_label_studio_counts_them(output: Output, count: int) -> None:
    prediction, _ = build_prediction(
        [two_parts()], parse_label_config(label_config(["key"])), width=80, height=60, model_version="v", output=output
    )
    regions = shown_regions(prediction["result"], 60, 80)
    assert len(regions) == count
    points = sum(len(entry["value"]["points"]) for entry in prediction["result"])
    assert sum(len(region.vertices_px) for region in regions) == points


def test_all_ways_see_the_same_instances() -> None:
    pytest.importorskip("cv2")
    ways = drawers(["key"], 0.5)
    assert list(ways) == [SERVED, BEFORE, OPENCV]
    shown = {way: draw([two_parts()], 60, 80) for way, draw in ways.items()}
    assert [len(regions) for regions in shown.values()] == [1, 2, 2]
    hidden = [Instance((0, 0, 9, 9), "key", 0.4, two_parts().mask_hw)]
    assert all(not draw(hidden, 60, 80) for draw in ways.values())


def test_a_person_clicks_as_little_as_a_good_outline_takes() -> None:
    disc = np.hypot(*(np.mgrid[:80, :80] - 39.5)) < 35
    few, many = (len(click_vertices(disc, GoodOutline(iou=iou))) for iou in (0.9, 0.99))
    assert few < many


def test_a_practised_person_clicks_between_pixels_and_leaves_specks() -> None:
    disc = np.hypot(*(np.mgrid[:60, :80] - 29.5)) < 8
    literal, practised = (GoodOutline(practised=practised) for practised in (False, True))
    assert len(click_vertices(disc, practised)) < len(click_vertices(disc, literal))

    speckled = disc.copy()
    speckled[50:53, 60:63] = True
    sample = Sample(np.zeros((60, 80, 3), np.uint8), speckled[None], np.zeros(1, int), np.zeros(1, bool), 0)
    (drawn,) = true_objects(sample, ["key"], practised)
    assert not drawn.mask_hw[51, 61]
    for shown in (disc, speckled):
        edits = Edits()
        edits.add([EditableObject("key", shown, drawn.vertices_px)], [drawn], practised)
        assert edits.untouched == 1


def test_the_command_prints_every_way_beside_the_other() -> None:
    arguments = ["evaluate", "--weights", str(WEIGHTS), "--scenes", "val", "--count", "1", "--edits", "--threads", "1"]
    answer = CliRunner().invoke(cli, [*arguments, "--good", "0.85", "6", "--json"], catch_exceptions=False)
    outcome = json.loads(answer.stdout)
    assert outcome["good"] == {"iou": 0.85, "distance_px": 6.0, "double_iou": 0.7, "practised": False}
    literal, practised = outcome["edits"][LITERAL], outcome["edits"][PRACTISED]
    assert {SERVED, BEFORE} <= set(literal)
    assert all(sums["objects"] == outcome["objects"] for sums in literal.values())
    assert {way: sums["regions"] for way, sums in practised.items()} == {
        way: sums["regions"] for way, sums in literal.items()
    }
    text = edits_text(outcome)
    assert SERVED in text
    assert "untouched" in text
