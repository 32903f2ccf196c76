"""What people changed: found, measured, located and priced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.instance import box_of
from training.metrics.boundary import compare_outlines, moved_band, outline_length
from training.snapshots.corrections import (
    KINDS,
    NO_OBJECT,
    Correction,
    DrawnObject,
    MostMoved,
    build_correction_report,
    correction_report_markdown,
    edit_cost,
    find_corrections,
    image_entry,
    match_objects,
)

SIZE = (60, 80)


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask_hw = np.zeros(SIZE, bool)
    mask_hw[top:bottom, left:right] = True
    return mask_hw


def corners_px(mask_hw: np.ndarray) -> np.ndarray:
    """The outline of a box: its four corners."""
    left, top, right, bottom = box_of(mask_hw)
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)


def drawn(label: str, mask_hw: np.ndarray, *ids: str, score: float | None = None) -> DrawnObject:
    return DrawnObject(label, mask_hw, ids, score)


HERE = box(10, 10, 40, 30)


@pytest.mark.parametrize(
    ("predicted", "annotated", "kind", "vertices", "cost"),
    [
        # the prediction's region, the annotation's region (same id), what it is, vertices moved or drawn, actions
        (("cat", HERE), ("cat", HERE), "kept", 0, 0),
        (("cat", HERE), ("cat", box(10, 10, 41, 30)), "kept", 0, 0),  # a pixel: nobody meant that
        (("cat", HERE), ("cat", box(10, 10, 45, 30)), "moved", 2, 2),  # the right side by 5
        (("cat", HERE), ("cat", box(10, 10, 42, 30)), "moved", 1, 1),  # by 2: moved, though vertices are close
        (("cat", HERE), ("cat", box(15, 15, 45, 35)), "moved", 4, 4),
        (("cat", HERE), ("cat", box(50, 40, 75, 55)), "moved", 4, 4),  # far away, but by its id
        (("cat", HERE), ("dog", HERE), "relabelled", 0, 2),
        (("cat", HERE), ("dog", box(15, 15, 45, 35)), "relabelled", 4, 6),
        (None, ("cat", HERE), "added", 4, 7),
        (("cat", HERE), None, "deleted", 0, 2),
    ],
)
def test_one_object(
    predicted: tuple[str, np.ndarray] | None,
    annotated: tuple[str, np.ndarray] | None,
    kind: str,
    vertices: int,
    cost: float,
) -> None:
    predictions = [drawn(*predicted, "r", score=0.7)] if predicted else []
    annotations = [drawn(*annotated, "r")] if annotated else []
    (correction,) = find_corrections(predictions, annotations, corners_px)
    assert (correction.kind, correction.vertices, correction.cost) == (kind, vertices, cost)
    assert (correction.annotated, correction.predicted) == (0 if annotated else None, 0 if predicted else None)
    assert correction.score == (0.7 if predicted else None)
    assert (correction.moved_band_hw is not None) == bool(vertices and predicted)
    assert correction.label == (annotated or predicted or ("",))[0]


def test_a_moved_side_is_measured_and_located() -> None:
    (correction,) = find_corrections([drawn("cat", HERE, "r")], [drawn("cat", box(10, 10, 45, 30), "r")], corners_px)
    assert correction.max_px == 5
    assert 0 < correction.mean_px < 2  # three sides did not move
    assert correction.iou == pytest.approx(30 / 35)
    band_hw = correction.moved_band_hw
    assert band_hw is not None
    assert band_hw[10:30, 40:45].all()  # what changed sides
    assert not band_hw[:, :35].any()  # what stayed
    assert not band_hw[:, 50:].any()


def test_weights_follow_what_people_did() -> None:
    predictions = [drawn("cat", HERE, "a"), drawn("cat", box(50, 40, 70, 55), "b")]
    annotations = [drawn("cat", HERE, "a"), drawn("dog", box(50, 40, 70, 55), "b"), drawn("cat", box(1, 40, 9, 50))]
    weights = [correction.weight for correction in find_corrections(predictions, annotations, corners_px)]
    assert weights == [0.5, 2.0, 2.0]
    unseen_corrections = find_corrections(None, annotations, corners_px)
    assert [(correction.kind, correction.weight) for correction in unseen_corrections] == [("added", 1.0)] * 3
    assert [correction.weight for correction in find_corrections([], annotations, corners_px)] == [2.0] * 3


@pytest.mark.parametrize(
    ("predicted", "annotated", "expected"),
    [
        # ids win over overlap
        ([("cat", HERE, "a"), ("cat", box(50, 10, 70, 30), "b")], [("cat", HERE, "b")], {0: 1}),
        # without ids, the larger overlap
        ([("cat", box(10, 10, 40, 25), ""), ("cat", HERE, "")], [("cat", HERE, "new")], {0: 1}),
        # of equal overlaps, the same label
        ([("dog", HERE, ""), ("cat", HERE, "")], [("cat", HERE, "new")], {0: 1}),
        # too little overlap is another object
        ([("cat", box(10, 10, 20, 30), "")], [("cat", HERE, "new")], {}),
        # each predicted object once: a copy of a region was added
        ([("cat", HERE, "a")], [("cat", HERE, "a"), ("cat", HERE, "copy")], {0: 0}),
        # the best pairs together, not greedily one by one
        (
            [("cat", box(10, 10, 40, 30), ""), ("cat", box(16, 10, 46, 30), "")],
            [("cat", box(14, 10, 44, 30), ""), ("cat", box(20, 10, 50, 30), "")],
            {0: 0, 1: 1},
        ),
        ([], [("cat", HERE, "a")], {}),
        ([("cat", HERE, "a")], [], {}),
    ],
)
def test_matching(
    predicted: list[tuple[str, np.ndarray, str]], annotated: list[tuple[str, np.ndarray, str]], expected: dict[int, int]
) -> None:
    predictions = [drawn(label, mask_hw, *([ids] if ids else [])) for label, mask_hw, ids in predicted]
    annotations = [drawn(label, mask_hw, *([ids] if ids else [])) for label, mask_hw, ids in annotated]
    assert match_objects(predictions, annotations) == expected


def test_nobody_edits_what_is_quicker_to_draw_again() -> None:
    many = np.column_stack([np.linspace(10, 40, 50), np.full(50, 30.0)])

    def outline_px(mask_hw: np.ndarray) -> np.ndarray:
        return many if mask_hw[20, 20] else corners_px(mask_hw)

    (correction,) = find_corrections([drawn("cat", HERE, "r")], [drawn("cat", box(50, 40, 70, 55), "r")], outline_px)
    assert correction.vertices == 50  # each of the old ones would have to go
    assert correction.cost == 2 + 3 + 4  # delete, and draw the new one with four


boxes = st.tuples(st.integers(0, 60), st.integers(0, 45), st.integers(1, 19), st.integers(1, 14)).map(
    lambda b: box(b[0], b[1], b[0] + b[2], b[1] + b[3])
)
things = st.lists(
    st.builds(
        lambda label, mask_hw, region: drawn(label, mask_hw, *([region] if region else [])),
        st.sampled_from(["cat", "dog"]),
        boxes,
        st.sampled_from(["", "a", "b", "c", "d"]),
    ),
    max_size=4,
)


@settings(max_examples=60)
@given(things, things)
def test_every_object_is_accounted_for_once(predictions: list[DrawnObject], annotations: list[DrawnObject]) -> None:
    corrections = find_corrections(predictions, annotations, corners_px)
    assert [correction.annotated for correction in corrections if correction.annotated is not None] == list(
        range(len(annotations))
    )
    origins = [correction.predicted for correction in corrections if correction.predicted is not None]
    assert sorted(origins) == list(range(len(predictions)))
    for correction in corrections:
        assert correction.kind in KINDS
        assert correction.cost >= 0
        assert (correction.cost == 0) == (correction.kind == "kept")
        assert correction.mean_px <= correction.max_px
        assert correction.cost <= 2 + 3 + 4 + 2


@settings(max_examples=30)
@given(things)
def test_what_is_submitted_as_it_was_costs_nothing(predictions: list[DrawnObject]) -> None:
    distinct = [
        drawn(correction.label, correction.mask_hw, f"r{number}") for number, correction in enumerate(predictions)
    ]
    corrections = find_corrections(distinct, distinct[::-1], corners_px)
    assert edit_cost(corrections) == 0
    assert all(correction.kind == "kept" for correction in corrections)


@settings(max_examples=30)
@given(boxes, boxes)
def test_distances_are_the_same_both_ways(one_hw: np.ndarray, other_hw: np.ndarray) -> None:
    forward, backward = compare_outlines(one_hw, other_hw), compare_outlines(other_hw, one_hw)
    assert (forward.mean_px, forward.max_px) == pytest.approx((backward.mean_px, backward.max_px))
    assert (forward.max_px == 0) == np.array_equal(one_hw, other_hw)
    band_hw = moved_band(one_hw, other_hw, forward, accepted_px=1, band_px=4)
    assert np.array_equal(band_hw, moved_band(other_hw, one_hw, backward, accepted_px=1, band_px=4))
    assert band_hw.any() == (forward.max_px > 1)


@pytest.mark.parametrize("shift", [1, 2, 3, 7])
def test_a_shift_is_as_far_as_it_is(shift: int) -> None:
    distance = compare_outlines(HERE, box(10 + shift, 10, 40 + shift, 30))
    assert distance.max_px == shift
    at_border = compare_outlines(box(0, 0, 80, 30), box(0, 0, 80, 30 + shift))
    assert at_border.max_px == shift  # also where outlines run along the border of the image


def test_outlines_need_two_masks() -> None:
    with pytest.raises(ValueError, match="expected two masks of one size"):
        compare_outlines(HERE, np.zeros(SIZE, bool))
    assert outline_length(np.zeros(SIZE, bool)) == 0
    assert outline_length(HERE) == 2 * (30 + 20)


def entry(corrections: Sequence[Correction], **fields: object) -> dict[str, object]:
    given_fields = {"sha256": "00", "task_id": 1, "annotation_ids": [1], "seconds": 12.0}
    return image_entry(corrections, **{**given_fields, "shown": True, **fields})  # type: ignore[arg-type]


def test_the_report_counts_by_the_label_that_was_shown() -> None:
    images = [
        entry(
            [
                Correction("kept", "cat", "cat", 0.9, 0, 0, 1.0),
                Correction("moved", "cat", "cat", 0.8, 1, 1, 0.7, 2.0, 6.0, 3, 3.0),
                Correction("relabelled", "dog", "cat", 0.6, 2, 2, 1.0, cost=2.0),
            ],
            sha256="bb",
        ),
        entry(
            [
                Correction("deleted", "dog", "dog", 0.5, None, 0, cost=2.0),
                Correction("added", "dog", annotated=0, vertices=5, cost=8.0),
            ],
            sha256="aa",
            seconds=13.0,
        ),
        entry([Correction("added", "cat", annotated=0, vertices=4, cost=7.0)], sha256="cc", shown=False, seconds=None),
        entry([], sha256="dd", seconds=3.0),
    ]
    report = build_correction_report(images, [{"task": 9, "annotation": 1, "region": "r", "reason": "it has no label"}])
    assert [image["sha256"] for image in report["images"]] == ["aa", "bb", "cc", "dd"]
    cat, dog, totals = report["labels"]["cat"], report["labels"]["dog"], report["totals"]
    assert [cat[key] for key in ("predicted", "kept", "moved", "relabelled", "deleted", "added", "unseen")] == [
        3,
        1,
        1,
        1,
        0,
        0,
        1,
    ]
    assert (cat["acceptance"], cat["moved_mean_px"], cat["moved_max_px"]) == (pytest.approx(1 / 3), 2.0, 6.0)
    assert (dog["predicted"], dog["deleted"], dog["added"], dog["acceptance"]) == (1, 1, 1, 0.0)
    assert report["labels"][NO_OBJECT]["seconds"] == 3.0
    assert totals["seconds"] == pytest.approx(28.0)
    assert cat["seconds"] == pytest.approx(12.0)
    assert (totals["images"], totals["images_shown"], totals["images_untouched"]) == (4, 3, 1)
    assert (totals["median_seconds"], totals["cost"]) == (12.0, 22.0)
    page = " ".join(correction_report_markdown(report, "Corrections").split())
    assert "| cat | 3 | 1 | 1 | 1 | 0 | 0 | 1 | 33% | 2.0 | 6.0 | 12.0 | 12.0 |" in page
    assert "- 1 x it has no label: task 9 region r" in page


def test_a_report_of_nothing() -> None:
    report = build_correction_report([])
    assert report["totals"]["acceptance"] is None
    assert "0 images" in correction_report_markdown(report, "Corrections")


def test_pictures_show_the_farthest_moves() -> None:
    sheet = MostMoved(limit=2)
    assert sheet.sheet() is None
    image = np.full((*SIZE, 3), 128, np.uint8)
    for number, shift in enumerate((3, 20, 9, 6)):
        after_hw = box(10 + shift, 10, 40 + shift, 30)
        (correction,) = find_corrections([drawn("cat", HERE, "r")], [drawn("cat", after_hw, "r")], corners_px)
        sheet.add(image, HERE, after_hw, correction, name=f"task {number}")
    (unchanged,) = find_corrections([drawn("cat", HERE, "r")], [drawn("cat", HERE, "r")], corners_px)
    sheet.add(image, HERE, HERE, unchanged, name="task 5")
    assert [name for _, name, _ in sorted(sheet._tiles)] == ["task 2", "task 1"]
    drawn_sheet = sheet.sheet()
    assert drawn_sheet is not None
    assert drawn_sheet.size[0] > 2 * 240
    colours = {colour for _, colour in drawn_sheet.getcolors(1 << 24)}
    assert {(255, 110, 0), (0, 230, 255)} <= colours  # before and after
