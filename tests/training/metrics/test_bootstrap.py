"""AP of weighed images: COCO's own numbers when every image counts once, those of real copies when some count more."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.support.coco_reference import indexed, quiet
from training.datasets import Sample, open_set
from training.evaluation.coco_format import TruthBuilder, coco_results
from training.metrics.bootstrap import (
    RankedMatches,
    average_precision,
    bootstrap_draws,
    image_weights,
    ranked_matches,
    resampled_ap,
)
from training.metrics.coco import coco_ap
from training.synthetic.scenes import CLASSES, generate_scene

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
            shifted = [np.roll(mask, rng.integers(-2, 3, 2), axis=(0, 1)) for mask in masks for _ in range(2)]
            labels = [label if rng.random() < 0.8 else rng.integers(len(CLASSES)) for label in np.repeat(classes, 2)]
            detections += coco_results(image_id, np.array(shifted), rng.random(len(labels)).round(1), np.array(labels))
    return indexed(truth.build()), detections


def reference(truth: COCO, detections: list[dict]) -> np.ndarray:
    """pycocotools' mask AP, K x T."""
    with quiet():
        run = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), "segm")
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][:, :, :, 0, -1].mean(1).T
    return np.where(precision < 0, np.nan, precision)


def ours(ranked: list[RankedMatches], weights: np.ndarray) -> np.ndarray:
    """B x K x T."""
    return np.stack([average_precision(matches, weights) for matches in ranked], axis=1)


def test_every_image_once_is_cocos_own_number(noisy: tuple) -> None:
    truth, detections = noisy
    once = np.ones((1, IMAGES), np.int64)
    mask = ours(ranked_matches(truth.dataset, detections, boundary=False), once)[0]
    np.testing.assert_allclose(mask, reference(truth, detections), rtol=0, atol=1e-9)
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
    ranked = ranked_matches(truth.dataset, unequal, boundary=False)
    expected = reference(*copied(truth, unequal, weights[0]))
    np.testing.assert_allclose(ours(ranked, weights)[0], expected, rtol=0, atol=1e-9)


def test_what_is_absent_is_nan_and_what_is_never_found_is_zero(noisy: tuple) -> None:
    truth, detections = noisy
    ranked = ranked_matches(truth.dataset, [], boundary=True)
    everything, nothing = np.ones((1, IMAGES), np.int64), np.zeros((1, IMAGES), np.int64)
    reached = ours(ranked, everything)[0]
    wanted = [annotation["category_id"] - 1 for annotation in truth.dataset["annotations"] if not annotation["iscrowd"]]
    present = np.isin(np.arange(len(CLASSES)), wanted)
    assert (reached[present] == 0).all()
    assert np.isnan(reached[~present]).all()
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
        moved = np.array([np.roll(mask, rng.integers(-2, 3, 2), (0, 1)) for mask in sample.masks])
        results += coco_results(index, moved, rng.random(len(moved)), sample.classes)
    truth = builder.build()
    values = resampled_ap(truth, results, image_weights(4, 10), ratio=0.02)
    assert values["mask"].shape == (11,)
    assert values["mask"][0] == pytest.approx(100 * coco_ap(truth, results, "segm")["AP"], abs=1e-9)
