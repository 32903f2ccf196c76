"""Mask AP and boundary AP against hand-made cases and against faster-coco-eval."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from tests.support.coco_reference import quiet
from training.datasets import Sample
from training.evaluation.coco_format import TruthBuilder, coco_results
from training.metrics.boundary import boundary_mask, boundary_width_px
from training.metrics.coco import coco_ap
from training.synthetic.scenes import CLASSES, generate_scene


def scene_sample(seed: int, image_id: int) -> Sample:
    scene = generate_scene(seed, width=200, height=150)
    masks = np.array([mask for _, mask in scene.instances], bool).reshape(-1, 150, 200)
    classes = np.array([CLASSES.index(label) for label, _ in scene.instances], np.int64)
    crowd = np.zeros(len(classes), bool)
    crowd[1::5] = True
    return Sample(scene.image, masks, classes, crowd, image_id)


def noisy_detections(rng: np.random.Generator, sample: Sample) -> list[dict]:
    """Shifted, eroded, doubled and mislabelled copies of the truth."""
    masks, classes = [], []
    for mask, label in zip(sample.masks, sample.classes, strict=True):
        for _ in range(2):
            masks.append(np.roll(mask, rng.integers(-3, 4, 2), axis=(0, 1)))
            classes.append(label if rng.random() < 0.8 else rng.integers(len(CLASSES)))
    return coco_results(sample.image_id, np.array(masks), rng.random(len(masks)), np.array(classes))


@pytest.fixture(scope="module")
def noisy_set() -> tuple:
    rng = np.random.default_rng(0)
    truth, results = TruthBuilder(CLASSES), []
    for image_id in range(1, 7):
        sample = scene_sample(image_id, image_id)
        truth.add(sample)
        results += noisy_detections(rng, sample)
    return truth.build(), results


@pytest.mark.parametrize("kind", ["segm", "boundary"])
def test_equals_faster_coco_eval(noisy_set: tuple, kind: str) -> None:
    faster = pytest.importorskip("faster_coco_eval", reason="development dependency faster-coco-eval is not installed")
    truth, results = noisy_set
    with quiet():
        theirs_truth = faster.COCO(copy.deepcopy(truth))
        run = faster.COCOeval_faster(theirs_truth, theirs_truth.loadRes(copy.deepcopy(results)), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    ours = coco_ap(truth, results, kind)
    assert 0.05 < ours["AP"] < 0.95
    for name, value in zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), run.stats[:6], strict=True):
        assert ours[name] == pytest.approx(value, abs=1e-9) or (np.isnan(ours[name]) and value == -1)


def test_perfect_results_score_one_and_none_score_zero() -> None:
    sample = scene_sample(3, 1)
    truth = TruthBuilder(CLASSES)
    truth.add(Sample(sample.image, sample.masks, sample.classes, np.zeros(len(sample.classes), bool), 1))
    dataset = truth.build()
    perfect = coco_results(1, sample.masks, np.linspace(0.5, 0.9, len(sample.masks)), sample.classes)
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
    band = boundary_mask(mask, 0.02)  # d = 3
    expected = mask.copy()
    expected[3:37, 3:37] = False
    assert np.array_equal(band, expected)
    assert not boundary_mask(np.zeros((20, 20), bool)).any()
