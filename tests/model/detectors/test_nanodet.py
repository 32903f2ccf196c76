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
from model.network import build_network

CHECKPOINT = Path(__file__).parents[3] / "model" / "weights" / "photos"
COCO_TINY = Path(os.environ.get("TRANSFINER_SHARED_DATA", "../shared/data")) / "coco_tiny"
BOX_AP = 26.6


@pytest.mark.slow
@pytest.mark.skipif(not COCO_TINY.is_dir(), reason=f"no {COCO_TINY}: set TRANSFINER_SHARED_DATA")
def test_box_ap_is_the_published_weights() -> None:
    cfg, state, _ = load_checkpoint(CHECKPOINT)
    cfg.MODEL.DEVICE = "cpu"
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
    assert 100 * evaluation.stats[0] == pytest.approx(BOX_AP, abs=0.3)
