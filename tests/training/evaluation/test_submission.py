"""A submission is what COCO's own tool loads, with the set's category ids."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from tests.support.miniature import write_miniature
from training.datasets import open_set
from training.evaluation.coco_truth import read_truth
from training.evaluation.run import Submission
from training.evaluation.score import score
from training.metrics.coco_schema import read_results


def test_perfect_detections_survive_the_file(tmp_path: Path) -> None:
    name = write_miniature("coco", tmp_path, train=0, val=3, width=128, height=96)["val"]
    samples: Any = open_set(name)
    collected = Submission(samples)
    for sample in samples:
        instances = Instances(sample.image.shape[:2])
        kept = np.flatnonzero(~sample.crowd)
        instances.pred_masks = torch.from_numpy(sample.masks[kept])
        instances.pred_classes = torch.from_numpy(sample.classes[kept])
        instances.scores = torch.ones(len(kept))
        collected(sample, instances)
    plain, packed = tmp_path / "results.json", tmp_path / "detections_test-dev2017_x_results.zip"
    collected.save(plain)
    collected.save(packed)
    truth = tmp_path / "annotations" / "instances_val2017.json"
    records, _ = read_results(plain, read_truth(truth, masks=True).dataset, masks=True)
    assert {"bbox"}.isdisjoint(records[0])
    assert score(truth, plain).numbers["AP"] == 1
    with zipfile.ZipFile(packed) as archive:
        assert json.loads(archive.read("detections_test-dev2017_x_results.json")) == records
