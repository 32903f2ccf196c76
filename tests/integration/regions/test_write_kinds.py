"""Which regions an instance becomes: kinds, parts, holes, shared edges; judged by Label Studio's own validation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from integration.polygons import exact
from integration.polygons.contours import trace_rings
from integration.regions.read import regions_to_objects
from integration.regions.write import Output
from tests.support.regions import (
    EXACT,
    PAIRED,
    instance,
    predict,
    ring,
)


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
