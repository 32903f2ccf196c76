"""Which regions an instance becomes: kinds, parts, holes, shared edges; judged by Label Studio's own validation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from integration.label_studio.label_config import Output
from integration.polygons.contours import exact_polygons
from integration.polygons.convert import polygons_to_mask
from integration.polygons.joining import split_ring
from integration.regions.read import regions_to_objects
from integration.regions.write import Reason
from model.instance import ProbabilityPatch, iou
from tests.support.regions import EXACT, PAIRED, instance, predict, ring


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("auto", ["polygonlabels"]),
        ("polygon", ["polygonlabels"]),
        ("brush", ["brushlabels"]),
        ("rectangle", ["rectanglelabels"]),
        ("all", ["polygonlabels", "brushlabels", "rectanglelabels"]),
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
    (obj,) = regions_to_objects(prediction["result"]).objects
    assert (obj.label, obj.mask_hw.sum()) == ("car", 72)


def test_an_object_is_one_region_whose_cuts_can_be_undone() -> None:
    prediction, _ = predict([instance()], output=EXACT)
    (region,) = prediction["result"]
    assert "parentID" not in region
    assert "meta" not in region
    drawn_px = np.round(np.array(region["value"]["points"]) * [60, 40] / 100, 4)
    parts = split_ring(drawn_px)
    assert len(parts) == 3
    assert sum(len(part.holes) for part in parts) == 1
    assert np.array_equal(polygons_to_mask(parts, 40, 60), ring())


def test_parts_are_regions_of_their_own_only_when_asked() -> None:
    prediction, _ = predict([instance()], output=replace(EXACT, parts="separate"))
    first, *others = prediction["result"]
    assert "parentID" not in first
    assert [region["parentID"] for region in others] == [first["id"]] * 2
    notes = [region["meta"]["text"] for region in prediction["result"]]
    assert notes == [[f"Part {number} of 3 of one object."] for number in (1, 2, 3)]


def test_plain_regions_carry_no_notes() -> None:
    prediction, _ = predict([instance(np.ones((40, 60), bool))])
    assert "meta" not in prediction["result"][0]
    assert sorted(prediction["result"][0]["value"]["points"]) == [[0, 0], [0, 100], [100, 0], [100, 100]]


@pytest.mark.parametrize("outline", ["smooth", "pixels"])
def test_small_parts_and_holes_are_left_out_without_a_word(outline: Any) -> None:
    mask_hw = ring()
    mask_hw[38, 50] = True
    mask_hw[25, 30] = False
    output = Output(min_area_px=20, min_part_share=0.05, tolerance_px=0, outline=outline)
    prediction, _ = predict([instance(mask_hw)], output=output)
    (region,) = prediction["result"]
    assert "meta" not in region
    (obj,) = regions_to_objects([region]).objects
    assert len(exact_polygons(obj.mask_hw)) == 1


def test_what_is_small_depends_on_the_object() -> None:
    mask_hw = np.zeros((40, 60), bool)
    mask_hw[5:35, 2:42] = True  # 1200 px
    mask_hw[10:16, 50:56] = True  # 36 px
    for share, parts in ((0.05, 1), (0.02, 2)):
        prediction, _ = predict([instance(mask_hw)], output=Output(min_part_share=share))
        (obj,) = regions_to_objects(prediction["result"]).objects
        assert len(exact_polygons(obj.mask_hw)) == parts


def test_an_object_near_the_border_reaches_it() -> None:
    mask_hw = np.zeros((40, 60), bool)
    mask_hw[10:30, 2:40] = True
    prediction, _ = predict([instance(mask_hw)])
    assert min(x for x, _ in prediction["result"][0]["value"]["points"]) == 0
    prediction, _ = predict([instance(mask_hw)], output=Output(border_px=0))
    assert min(x for x, _ in prediction["result"][0]["value"]["points"]) > 3


def test_doubles_of_other_classes_are_left_out() -> None:
    mask_hw = np.zeros((40, 60), bool)
    mask_hw[10:30, 10:40] = True
    double_hw = np.roll(mask_hw, 2, axis=1)
    both = [instance(mask_hw, score=0.8), instance(double_hw, label="pine", score=0.9)]
    prediction, report = predict(both)
    assert [region["value"]["polygonlabels"] for region in prediction["result"]] == [["tree"]]
    assert report.dropped == {Reason.DOUBLE: 1}
    _, report = predict(both, output=Output(double_iou=1.0))
    assert report.shown == 2
    # What no label of the project shows hides nothing.
    _, report = predict([both[0], instance(double_hw, label="whale", score=0.9)])
    assert report.shown == 1


def test_a_part_inside_a_better_object_of_its_class_is_left_out() -> None:
    whole_hw = np.zeros((40, 60), bool)
    whole_hw[10:30, 10:40] = True
    half_hw = np.zeros_like(whole_hw)
    half_hw[10:19, 9:40] = True  # 30 of 31 columns lie inside
    whole, half = instance(whole_hw, score=0.9), instance(half_hw, score=0.6)
    prediction, report = predict([half, whole])
    assert report.dropped == {Reason.PART: 1}
    assert [region["score"] for region in prediction["result"]] == [0.9]
    for pair in ([whole, replace(half, label="pine")], [replace(whole, score=0.5), half]):
        assert predict(pair)[1].shown == 2  # a nose on a face; a whole that is less likely than its part
    assert predict([half, whole], output=Output(part_cover=1.0))[1].shown == 2


@given(hnp.arrays(np.float32, (9, 12), elements=st.floats(0, 1, width=32)), st.booleans())
def test_smooth_outlines_at_tolerance_0_are_exactly_the_mask(values: np.ndarray, with_probabilities: bool) -> None:
    mask_hw = np.zeros((40, 60), bool)
    mask_hw[6:15, 20:32] = values >= 0.5
    patch = ProbabilityPatch(values, (20.0, 6.0, 32.0, 15.0)) if with_probabilities else None
    prediction, report = predict([replace(instance(mask_hw), probabilities=patch)], output=EXACT)
    if not mask_hw.any():
        assert report.shown == 0
        return
    (obj,) = regions_to_objects(prediction["result"]).objects
    assert np.array_equal(obj.mask_hw, mask_hw)


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
    first, second = (obj.mask_hw for obj in regions_to_objects(prediction["result"]).objects)
    assert not (first & second).any()
    assert (first | second)[5:35, 10:50].all()
    apart, _ = predict(both, output=alone)
    assert apart != prediction


def test_a_vertex_budget_or_another_tolerance_keeps_edges_apart() -> None:
    halves = np.zeros((2, 40, 60), bool)
    halves[0, 5:30, 5:30] = halves[1, 5:30, 30:50] = True
    both = [instance(half) for half in halves]
    for output in (Output(shared_edges=True, max_vertices=9), Output(shared_edges=True, score_threshold=0.95)):
        assert predict(both, output=output) == predict(both, output=replace(output, shared_edges=False))


def test_holes_as_brush_when_asked_and_there_is_a_brush() -> None:
    whole = np.pad(np.ones((8, 9), bool), ((5, 27), (6, 45)))
    output = replace(EXACT, holes="brush")
    prediction, _ = predict([instance(), instance(whole)], output=output)
    assert [region["type"] for region in prediction["result"]] == ["brushlabels", "polygonlabels"]
    prediction, _ = predict([instance(label="pine")], output=output)  # no brush for trees
    assert {region["type"] for region in prediction["result"]} == {"polygonlabels"}


ONLY = """<View><Image name="image" value="$image"/>
  <{tag} name="only" toName="image"><Label value="car"/></{tag}></View>"""


@pytest.mark.parametrize("tag", ["VectorLabels", "BitmaskLabels"])
def test_a_config_of_vectors_or_bitmasks_alone_gets_exact_regions(tag: str) -> None:
    prediction, _ = predict([instance()], ONLY.format(tag=tag), output=EXACT)
    (region,) = prediction["result"]
    assert (region["type"], region["value"].get("closed", True)) == (tag.lower(), True)
    (obj,) = regions_to_objects(prediction["result"]).objects
    assert np.array_equal(obj.mask_hw, ring())


@given(st.floats(15, 28), st.floats(8, 14), st.floats(0, 180), st.integers(0, 10))
def test_an_ellipse_is_fitted_and_its_iou_is_stated(long: float, short: float, degrees: float, shift: int) -> None:
    height, width = 90, 120
    y, x = np.mgrid[:height, :width] + 0.5
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    along, across = (x - 60 - shift) * cosine + (y - 45) * sine, (y - 45) * cosine - (x - 60 - shift) * sine
    mask_hw = (along / long) ** 2 + (across / short) ** 2 <= 1
    sizes = {"width": width, "height": height}
    prediction, _ = predict([instance(mask_hw)], ONLY.format(tag="EllipseLabels"), output=EXACT, **sizes)
    (region,) = prediction["result"]
    (obj,) = regions_to_objects(prediction["result"]).objects
    overlap = iou(obj.mask_hw, mask_hw)
    assert overlap > 0.95
    assert abs(float(region["meta"]["text"][0].split()[-1].rstrip(".")) - overlap) < 0.02


@pytest.mark.parametrize("tag", ["VectorLabels", "EllipseLabels", "BitmaskLabels"])
def test_odd_masks_are_valid_regions_of_any_kind(tag: str) -> None:
    masks = {name: np.zeros((40, 60), bool) for name in ("dot", "line", "all", "nothing")}
    masks["dot"][3, 4] = masks["line"][:, 7] = masks["all"][:] = True
    for name, mask_hw in masks.items():
        prediction, _ = predict([instance(mask_hw)], ONLY.format(tag=tag), output=EXACT)
        assert len(prediction["result"]) == (name != "nothing")


def test_all_kinds_hold_an_ellipse_only_where_there_is_no_other() -> None:
    both = ONLY.format(tag="EllipseLabels").replace(
        "</View>", '<PolygonLabels name="p" toName="image"><Label value="car"/></PolygonLabels></View>'
    )
    prediction, _ = predict([instance()], both, output=replace(EXACT, kind="all"))
    assert [region["type"] for region in prediction["result"]] == ["polygonlabels"]
