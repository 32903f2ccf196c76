"""COCO's numbers against pycocotools and faster-coco-eval; of weighed images; malformed files; run lengths.

AP of weighed images is COCO's own when every image counts once, that of real copies when some count more.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.support.coco_reference import indexed, quiet
from tests.support.miniature import write_miniature
from tests.support.perturbed_truth import perturb_truth
from training.datasets import Sample, open_set
from training.evaluation.coco_format import TruthBuilder, checked_truth, coco_results, encode
from training.metrics.boundary import band, boundary_mask, boundary_width_px, crop, unpack, well_formed
from training.metrics.coco import (
    RankedMatches,
    average_precision,
    bootstrap_draws,
    coco_ap,
    compressed,
    image_weights,
    ranked_matches,
    resampled_ap,
)
from training.metrics.coco_schema import RecordError, checked_results
from training.synthetic.scenes import CLASSES, generate_scene

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SHARED = Path(os.environ.get("TRANSFINER_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A miniature in COCO's layout: 80 categories, polygons, crowds."""
    folder = tmp_path_factory.mktemp("coco")
    write_miniature("coco", folder, train=0, val=6, width=160, height=120)
    return json.loads((folder / "annotations" / "instances_val2017.json").read_text())


@pytest.fixture(scope="module")
def detections(dataset: dict[str, Any]) -> list[dict[str, Any]]:
    return perturb_truth(dataset, copies=6, seed=1)


def reference(dataset: dict[str, Any], results: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The 12 numbers and the AP of each category by pycocotools, for boundaries by faster-coco-eval."""
    dataset, results = copy.deepcopy(dataset), copy.deepcopy(results)
    with quiet():
        if kind == "boundary":
            faster = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
            index = faster.COCO(dataset)
            run = faster.COCOeval_faster(index, index.loadRes(results), kind)
        else:
            index = indexed(dataset)
            run = COCOeval(index, index.loadRes(results), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return dict(zip(NAMES, run.stats[:12], strict=True))


def same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    for name, value in theirs.items():
        assert (-1 if np.isnan(ours[name]) else ours[name]) == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("kind", ["segm", "bbox", "boundary"])
def test_equals_the_reference(dataset: dict[str, Any], detections: list[dict[str, Any]], kind: Any) -> None:
    ours = coco_ap(dataset, detections, kind)
    assert 0.1 < ours["AP"] < 0.9
    same(ours, reference(dataset, detections, kind))


def test_boxes_of_results_change_the_areas_unless_told_otherwise(dataset: dict[str, Any]) -> None:
    box_results = perturb_truth(dataset, copies=3, seed=2, boxes=True)
    mask_results = [{name: value for name, value in result.items() if name != "bbox"} for result in box_results]
    with_boxes, without_boxes = coco_ap(dataset, box_results, "segm"), coco_ap(dataset, mask_results, "segm")
    same(with_boxes, reference(dataset, box_results, "segm"))
    assert with_boxes["APs"] != without_boxes["APs"]
    assert coco_ap(dataset, box_results, "segm", mask_areas=True) == pytest.approx(without_boxes, nan_ok=True)


def test_crowded_images_keep_the_best_hundred_of_a_category(dataset: dict[str, Any]) -> None:
    small = {**dataset, "annotations": dataset["annotations"][:2]}
    many = perturb_truth(small, copies=130, seed=3)
    same(coco_ap(small, many, "segm"), reference(small, many, "segm"))


def test_equals_the_reference_on_photographs() -> None:
    file = SHARED / "coco_tiny" / "annotations" / "instances_val2017.json"
    if not file.is_file():
        pytest.skip(f"{file} is not here; set TRANSFINER_SHARED_DATA")
    dataset = json.loads(file.read_text())
    image_ids = {image["id"] for image in dataset["images"][:15]}
    dataset["images"] = dataset["images"][:15]
    dataset["annotations"] = [
        annotation for annotation in dataset["annotations"] if annotation["image_id"] in image_ids
    ]
    results = perturb_truth(dataset, copies=2)
    for kind in ("segm", "bbox", "boundary"):
        same(coco_ap(dataset, results, kind), reference(dataset, results, kind))


def test_perfect_results_score_one_and_none_score_zero() -> None:
    sample = open_set("scenes:train:4", width=200, height=150)[3]
    truth = TruthBuilder(CLASSES)
    truth.add(sample)
    dataset = truth.build()
    perfect = coco_results(
        sample.image_id, sample.masks, np.linspace(0.5, 0.9, len(sample.masks)), sample.classes.tolist()
    )
    for kind in ("segm", "boundary"):
        assert coco_ap(dataset, perfect, kind)["AP"] == pytest.approx(1)
        assert coco_ap(dataset, [], kind)["AP"] == 0


@pytest.mark.parametrize(
    ("height", "width", "ratio", "expected"),
    [
        (375, 500, 0.02, 12),  # 12.5 rounds to the even 12
        (1024, 2048, 0.005, 11),  # Cityscapes
        (10, 10, 0.02, 1),  # never below one pixel
        (288, 384, 0.02, 10),
    ],
)
def test_boundary_width(height: int, width: int, ratio: float, expected: int) -> None:
    assert boundary_width_px(height, width, ratio) == expected


def test_boundary_is_the_inner_band_and_the_image_edge_counts_as_outside() -> None:
    mask = np.zeros((100, 100), bool)
    mask[:40, :40] = True
    expected = mask.copy()
    expected[3:37, 3:37] = False
    assert np.array_equal(boundary_mask(mask, 0.02), expected)  # d = 3
    assert not boundary_mask(np.zeros((20, 20), bool)).any()


masks = st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**32 - 1), st.floats(0, 1)).map(
    lambda given: np.random.default_rng(given[2]).random(given[:2]) < given[3]
)


@given(st.lists(masks, min_size=1, max_size=5))
def test_run_lengths_are_unpacked_as_pycocotools_packs_them(mask_list: list[np.ndarray]) -> None:
    counts = [rle.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in mask_list]
    runs = unpack(counts)
    assert well_formed(counts, np.array([mask.size for mask in mask_list])).all()
    for index, mask in enumerate(mask_list):
        height, width = mask.shape
        cut = crop(runs[index], height, slice(width // 3, width), slice(height // 2, height))
        assert np.array_equal(cut.T, mask[height // 2 :, width // 3 :])


@given(masks, st.integers(1, 6))
def test_a_boundary_is_what_erosions_remove(mask: np.ndarray, width_px: int) -> None:
    inner = np.pad(mask, 1)
    for _ in range(width_px):
        rows = inner[:-2] & inner[1:-1] & inner[2:]
        inner = np.pad(rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:], 1)
    assert np.array_equal(band(mask, width_px), mask & ~inner[1:-1, 1:-1])


@given(st.binary(max_size=30), st.integers(0, 400))
def test_a_mask_that_passes_is_read_alike_by_pycocotools(counts: bytes, pixels: int) -> None:
    """Whatever passes our check is safe to hand to C."""
    if 0 not in counts and pixels and well_formed([counts], np.array([pixels]))[0]:
        mask = rle.decode({"size": [pixels, 1], "counts": counts})
        assert mask.sum() == rle.area({"size": [pixels, 1], "counts": counts}) == unpack([counts])[0][1::2].sum()


def spoiled(record: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with one value replaced; `...` removes it."""
    record = copy.deepcopy(record)
    inner = record
    for step in path[:-1]:
        inner = inner[step]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((0, "score"), ..., r"f\.json: results\[0\]\.score: is missing"),
        ((1, "score"), "high", r"results\[1\]\.score: is 'high'"),
        ((2, "score"), float("nan"), r"results\[2\]\.score: is nan"),
        ((0, "image_id"), 999, r"results\[0\]\.image_id: is 999"),
        ((0, "image_id"), [], r"results\[0\]\.image_id: is \[\]"),
        ((3, "category_id"), 12, r"results\[3\]\.category_id: is 12"),
        ((4, "segmentation"), ..., r"results\[4\]\.segmentation: is missing"),
        ((4, "segmentation", "size"), [1, 2], r"results\[4\]\.segmentation\.size"),
        ((5, "segmentation", "counts"), "abc", r"results\[5\]\.segmentation\.counts: is 'abc'"),
        ((5, "segmentation", "counts"), [3, -1], r"results\[5\]\.segmentation\.counts"),
        ((5, "segmentation"), [[1, 2, 3]], r"results\[5\]\.segmentation\[0\]: is \[1, 2, 3\]"),
        ((0,), 7, r"results\[0\]: is 7; expected an object"),
    ],
)
def test_malformed_results_are_named(
    dataset: dict[str, Any], detections: list[dict[str, Any]], path: Any, value: Any, message: str
) -> None:
    with pytest.raises(RecordError, match=message):
        checked_results(spoiled(detections, path, value), "f.json", dataset, masks=True)


@pytest.mark.parametrize(
    ("path", "value", "kind", "is_lost"),
    [
        (("images", 1, "id"), 1, "repeated image id", True),
        (("categories", 0, "name"), None, "category without name", False),
        (("annotations", 0, "area"), -1, "broken area", False),
        (("annotations", 0, "image_id"), 99, "unknown image", True),
        (("annotations", 2, "category_id"), 0, "unknown category", True),
        (("annotations", 2, "iscrowd"), "no", "broken iscrowd", False),
        (("annotations", 1, "segmentation"), [], "no mask", True),
        (("annotations", 1, "id"), 1, "repeated annotation id", False),
    ],
)
def test_damaged_truth_is_judged_by_what_is_left_of_it(
    dataset: dict[str, Any], path: Any, value: Any, kind: str, is_lost: bool
) -> None:
    truth = checked_truth(spoiled(dataset, path, value), Path("t.json"), masks=True)
    assert dict(truth.problems.counts())[kind] >= 1
    assert bool(truth.problems.lost) == is_lost
    assert "ground truth: " in truth.notes()[0]
    perfect = perturb_truth(truth.dataset, copies=1)
    for result, annotation in zip(perfect, truth.dataset["annotations"], strict=True):
        mask_rle = compressed(annotation["segmentation"], 120, 160)
        result |= {"category_id": annotation["category_id"], "score": 0.9, "segmentation": mask_rle}
    # What is ignored neither helps nor harms.
    assert coco_ap(truth.dataset, perfect, "segm")["AP"] == pytest.approx(1)


def test_truth_without_a_size_to_draw_in_is_refused(dataset: dict[str, Any]) -> None:
    without = dataset | {"annotations": [a for a in dataset["annotations"] if a["image_id"] != 1]}
    with pytest.raises(RecordError, match=r"image 1: height, width are missing"):
        checked_truth(spoiled(without, ("images", 0, "height"), 0), Path("t.json"), masks=True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60)
@given(st.data())
def test_any_spoiled_file_is_refused_or_evaluated(
    dataset: dict[str, Any], detections: list[Any], data: st.DataObject
) -> None:
    """Replace a value anywhere: either an error that names the file, or numbers."""
    truth, results = {**dataset, "annotations": dataset["annotations"][:3]}, detections[:6]
    whole = {"truth": truth, "results": results}
    path: list[Any] = []
    inner: Any = whole
    while isinstance(inner, dict | list) and inner and (not path or data.draw(st.integers(0, 3)) > 0):
        step = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        path.append(step)
        inner = inner[step]
    whole = spoiled(whole, tuple(path), data.draw(json_values))
    try:
        truth = checked_truth(whole["truth"], Path("truth.json"), masks=True)
        ground_truth = truth.dataset
        results, _ = checked_results(
            whole["results"], "results.json", ground_truth, masks=True, left_out=truth.left_out
        )
    except RecordError as error:
        is_named = "truth.json" in str(error) or "results.json" in str(error)
    else:
        is_named = True
        assert -1e-9 <= np.nan_to_num(coco_ap(ground_truth, results, "segm")["AP"]) <= 1 + 1e-9
    assert is_named


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.integers(0, 99))
def test_masks_are_encoded_as_pycocotools_does(height: int, width: int, share: float, seed: int) -> None:
    mask_hw = np.random.default_rng(seed).random((height, width)) < share
    expected = rle.encode(np.asfortranarray(mask_hw, dtype=np.uint8))
    mask_rle = encode(mask_hw)
    assert (list(mask_rle["size"]), mask_rle["counts"]) == (list(expected["size"]), expected["counts"])


IMAGES = 12


@pytest.fixture(scope="module")
def noisy() -> tuple[COCO, list[dict]]:
    """Scenes with crowds; detections shifted, doubled, mislabelled, some with equal scores, none on the last image."""
    rng = np.random.default_rng(0)
    truth, detections = TruthBuilder(CLASSES), []
    for image_id in range(1, IMAGES + 1):
        scene = generate_scene(image_id, width=160, height=120)
        masks = np.array([mask for _, mask in scene.instances], bool).reshape(-1, 120, 160)
        classes = np.array([CLASSES.index(label) for label, _ in scene.instances], np.int64)
        crowd = np.arange(len(classes)) % 5 == 1
        truth.add(Sample(scene.image, masks, classes, crowd, image_id))
        if image_id < IMAGES:
            shifted_masks = [np.roll(mask, rng.integers(-2, 3, 2), axis=(0, 1)) for mask in masks for _ in range(2)]
            labels = [label if rng.random() < 0.8 else rng.integers(len(CLASSES)) for label in np.repeat(classes, 2)]
            detections += coco_results(
                image_id, np.array(shifted_masks), rng.random(len(labels)).round(1), np.array(labels)
            )
    return indexed(truth.build()), detections


def reference_ap(truth: COCO, detections: list[dict]) -> np.ndarray:
    """pycocotools' mask AP, K x T."""
    with quiet():
        run = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), "segm")
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, -1].mean(1).T
    return np.where(precision < 0, np.nan, precision)


def ours(class_matches: list[RankedMatches], weights: np.ndarray) -> np.ndarray:
    """B x K x T."""
    return np.stack([average_precision(matches, weights) for matches in class_matches], axis=1)


def test_every_image_once_is_cocos_own_number(noisy: tuple) -> None:
    truth, detections = noisy
    once = np.ones((1, IMAGES), np.int64)
    mask = ours(ranked_matches(truth.dataset, detections, boundary=False), once)[0]
    np.testing.assert_allclose(mask, reference_ap(truth, detections), rtol=0, atol=1e-9)
    boundary = ours(ranked_matches(truth.dataset, detections, boundary=True), once)[0]
    expected = coco_ap(truth.dataset, detections, "boundary")
    assert np.nanmean(boundary) == pytest.approx(expected["AP"], abs=1e-9)
    assert boundary[0].mean() == pytest.approx(expected[f"AP/{CLASSES[0]}"], abs=1e-9)


def copied(truth: COCO, detections: list[dict], weights: np.ndarray) -> tuple[COCO, list[dict]]:
    """Real copies of images."""
    dataset: dict = {"images": [], "annotations": [], "categories": truth.dataset["categories"], "info": {}}
    results = []
    for image, weight in zip(truth.dataset["images"], weights, strict=True):
        for number in range(weight):
            identity = image["id"] * 100 + number
            dataset["images"].append(image | {"id": identity})
            for annotation in truth.dataset["annotations"]:
                if annotation["image_id"] == image["id"]:
                    place = len(dataset["annotations"]) + 1
                    dataset["annotations"].append(annotation | {"image_id": identity, "id": place})
            results += [
                detection | {"image_id": identity} for detection in detections if detection["image_id"] == image["id"]
            ]
    return indexed(dataset), results


@pytest.mark.parametrize("seed", range(4))
def test_an_image_drawn_often_counts_as_copies_of_it(noisy: tuple, seed: int) -> None:
    truth, detections = noisy
    # Copies of a detection stay together in the ranking, as they do in ours.
    unequal = [detection | {"score": detection["score"] + 1e-6 * number} for number, detection in enumerate(detections)]
    weights = bootstrap_draws(IMAGES, 1, seed)
    class_matches = ranked_matches(truth.dataset, unequal, boundary=False)
    expected = reference_ap(*copied(truth, unequal, weights[0]))
    np.testing.assert_allclose(ours(class_matches, weights)[0], expected, rtol=0, atol=1e-9)


def test_what_is_absent_is_nan_and_what_is_never_found_is_zero(noisy: tuple) -> None:
    truth, detections = noisy
    class_matches = ranked_matches(truth.dataset, [], boundary=True)
    everything, nothing = np.ones((1, IMAGES), np.int64), np.zeros((1, IMAGES), np.int64)
    values = ours(class_matches, everything)[0]
    labels = [annotation["category_id"] - 1 for annotation in truth.dataset["annotations"] if not annotation["iscrowd"]]
    present = np.isin(np.arange(len(CLASSES)), labels)
    assert (values[present] == 0).all()
    assert np.isnan(values[~present]).all()
    assert np.isnan(ours(ranked_matches(truth.dataset, detections, boundary=False), nothing)).all()


def test_draws_keep_the_number_of_images_and_repeat_by_seed() -> None:
    assert (bootstrap_draws(7, 50, 3).sum(1) == 7).all()
    assert (bootstrap_draws(7, 50, 3) == bootstrap_draws(7, 50, 3)).all()
    assert bootstrap_draws(0, 5, 0).shape == (5, 0)


def test_resampled_ap_of_all_scenes_is_cocos() -> None:
    builder, results = TruthBuilder(CLASSES), []
    samples = open_set("scenes:val:4", width=128, height=96)
    rng = np.random.default_rng(0)
    for index in range(4):
        sample = samples[index]
        builder.add(sample)
        shifted_masks = np.array([np.roll(mask, rng.integers(-2, 3, 2), (0, 1)) for mask in sample.masks])
        results += coco_results(index, shifted_masks, rng.random(len(shifted_masks)), sample.classes)
    truth = builder.build()
    values = resampled_ap(truth, results, image_weights(4, 10), ratio=0.02)
    assert values["mask"].shape == (11,)
    assert values["mask"][0] == pytest.approx(100 * coco_ap(truth, results, "segm")["AP"], abs=1e-9)
