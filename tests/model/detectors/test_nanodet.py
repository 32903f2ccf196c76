"""NanoDet-g as it ships: box AP on COCO images, which its author's weights gave elsewhere, too."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.checkpoints.checkpoint import load_checkpoint
from model.detectors.coco_classes import COCO_CLASSES
from model.detectors.nanodet import NanoDet, detections_of
from model.network import build_network

CHECKPOINT = Path(__file__).parents[3] / "model" / "weights" / "photos"
COCO_TINY = Path(os.environ.get("TRANSFINER_SHARED_DATA", "../shared/data")) / "coco_tiny"
LOOKS = [([416], False, 26.6), ([416, 512], True, 30.6)]


def like(box: list[float], score: float, classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """One look with one candidate of class 0."""
    return torch.tensor([box]), torch.tensor([[score] + [0.0] * (classes - 1)])


def test_a_mirrored_look_gives_boxes_of_the_image_as_it_is() -> None:
    torch.manual_seed(0)
    detector = NanoDet().eval()
    pixels = torch.rand(1, 3, 60, 80) * 255
    with torch.inference_mode():
        boxes, scores = detector.look(pixels, 64, is_mirrored=False)
        mirrored, scores_of_flipped = detector.look(pixels.flip(-1), 64, is_mirrored=True)
    assert torch.allclose(scores, scores_of_flipped, atol=1e-5)
    expected = torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1)
    assert torch.allclose(mirrored, expected, atol=1e-5)


def test_looks_vote_for_a_box_and_what_one_look_alone_shows_counts_less() -> None:
    looks = [like([0.1, 0.1, 0.5, 0.5], 0.6), like([0.1, 0.1, 0.54, 0.5], 0.3)]
    boxes, scores, classes = detections_of(looks, (100, 200), 0.05, 10)
    assert boxes.tolist() == [pytest.approx([20, 10, 2 * (50 * 0.6 + 54 * 0.3) / 0.9, 50], abs=1e-3)]
    assert scores.tolist() == [pytest.approx((0.6 + 0.45) / 2)]
    assert classes.tolist() == [0]
    alone = [like([0.1, 0.1, 0.5, 0.5], 0.6), like([0.6, 0.6, 0.9, 0.9], 0.06)]
    boxes, scores, _ = detections_of(alone, (100, 200), 0.05, 10)
    assert boxes.tolist() == [pytest.approx([20, 10, 100, 50], abs=1e-3)]  # the other one falls below the threshold
    assert scores.tolist() == [pytest.approx((0.6 + 0.3) / 2)]


def test_looks_without_candidates_show_nothing() -> None:
    empty = detections_of([like([0.1, 0.1, 0.5, 0.5], 0.01)] * 2, (100, 200), 0.05, 10)
    assert [len(values) for values in empty] == [0, 0, 0]


def test_a_box_outside_the_image_stays_a_number() -> None:
    boxes, _, _ = detections_of([like([1.1, 0.1, 1.5, 0.5], 0.6), like([0, 0, 1, 1], 0.01)], (100, 200), 0.05, 10)
    assert boxes.tolist() == [pytest.approx([200, 10, 200, 50], abs=1e-3)]


def test_one_look_keeps_its_boxes_and_scores() -> None:
    boxes, scores, _ = detections_of([like([0.1, 0.1, 0.5, 0.5], 0.6)], (100, 200), 0.05, 10)
    assert boxes.tolist() == [pytest.approx([20, 10, 100, 50], abs=1e-3)]
    assert scores.tolist() == [pytest.approx(0.6)]


@pytest.mark.slow
@pytest.mark.skipif(not COCO_TINY.is_dir(), reason=f"no {COCO_TINY}: set TRANSFINER_SHARED_DATA")
@pytest.mark.parametrize(("sides", "is_mirrored", "box_ap"), LOOKS)
def test_box_ap_of_one_look_is_the_published_weights_and_of_four_is_higher(
    sides: list[int], is_mirrored: bool, box_ap: float
) -> None:
    cfg, state, _ = load_checkpoint(CHECKPOINT)
    cfg.MODEL.DEVICE, cfg.MODEL.PROMPTED.TEST_SIDES, cfg.MODEL.PROMPTED.TEST_MIRRORED = "cpu", sides, is_mirrored
    network = build_network(cfg)
    network.load_state_dict({name: value.float() for name, value in state.items()})
    network.eval()
    truth = COCO(str(COCO_TINY / "annotations" / "instances_val2017.json"))
    numbers = {category["name"]: category["id"] for category in truth.loadCats(truth.getCatIds())}
    results = []
    for record in truth.loadImgs(truth.getImgIds()):
        pixels = np.array(Image.open(COCO_TINY / "val2017" / record["file_name"]).convert("RGB"))
        with torch.inference_mode():
            detections = network.detect(torch.from_numpy(pixels).permute(2, 0, 1), (record["height"], record["width"]))
        for box, score, label in zip(*(values.tolist() for values in detections), strict=True):
            size = [box[2] - box[0], box[3] - box[1]]
            category = numbers[COCO_CLASSES[label]]
            results.append({"image_id": record["id"], "category_id": category, "bbox": box[:2] + size, "score": score})
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert 100 * evaluation.stats[0] == pytest.approx(box_ap, abs=0.3)
