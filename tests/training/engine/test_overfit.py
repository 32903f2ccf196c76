"""The whole network, narrow, on one small scene: losses fall, a checkpoint is written, and it evaluates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks

from backend.cli.train.evaluate import evaluate
from backend.cli.train.train import train
from training.datasets import open_set
from training.evaluation.coco_format import TruthBuilder, coco_results
from training.metrics.coco import coco_ap

NARROW = {
    "DATASETS.TRAIN": "('scenes:train:1',)",
    "DATALOADER.NUM_WORKERS": "0",
    "INPUT.MIN_SIZE_TRAIN": "(96,)",
    "INPUT.MIN_SIZE_TEST": "96",
    "INPUT.RANDOM_FLIP": "none",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.RPN.CONV_DIMS": "[16]",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "16",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "16",
    "MODEL.TRANSFINER.INCOHERENCE_DIM": "16",
    "MODEL.TRANSFINER.ENCODER_FFN_DIM": "32",
    "MODEL.TRANSFINER.SAMPLES_PER_LEVEL": "20",
    "SOLVER.IMS_PER_BATCH": "1",
    "SOLVER.MAX_ITER": "14",
    "SOLVER.BASE_LR": "0.003",
    "SOLVER.WARMUP_ITERS": "2",
    "TRAINING.INIT": "''",
    "TRAINING.EMA_DECAY": "0.0",
    "TRAINING.FLIP_VERTICAL": "False",
    "TRAINING.LOG_PERIOD": "1",
    "TRAINING.SCENE_CACHE": "''",
    "TRAINING.SCENE_WIDTH": "128",
    "TRAINING.SCENE_HEIGHT": "96",
    "TRAINING.MAX_MINUTES": "0.0",
}

# detectron2 and torch 2.15 disagree about what is deprecated; nothing of ours is meant.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*meshgrid.*:UserWarning"),
]


def test_train_then_evaluate_from_the_command_line(tmp_path: Path) -> None:
    settings = [text for key, value in NARROW.items() for text in ("--set", key, value)]
    run = ["training/scenes-small", "--out", str(tmp_path / "run"), "--device", "cpu", "--json", *settings]
    trained = CliRunner().invoke(train, run, catch_exceptions=False)
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout.splitlines()[-1])["iterations"] == 14
    lines = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    first, last = lines[0]["total"], min(line["total"] for line in lines[-4:])
    assert last < 0.8 * first, f"loss went from {first:.2f} to {last:.2f} only"

    again = CliRunner().invoke(train, run)
    assert again.exit_code == 1
    assert "add --resume" in again.output

    limits = ["--set", "TEST.DETECTIONS_PER_IMAGE", "3", "--set", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"]
    measure = ["--weights", str(tmp_path / "run" / "checkpoint"), "--scenes", "val", "--count", "1", "--json"]
    measured = CliRunner().invoke(evaluate, [*measure, *limits], catch_exceptions=False)
    assert measured.exit_code == 0, measured.output
    outcome = json.loads(measured.stdout.splitlines()[-1])
    assert set(outcome["refined"]) == set(outcome["coarse"]) == {"mask", "boundary"}


@pytest.mark.parametrize(("side", "low", "high"), [(28, 0.80, 0.89), (112, 0.99, 1.0)])
def test_what_a_grid_can_hold_of_a_scene(side: int, low: float, high: float) -> None:
    """Truth drawn on a RoI's grid and pasted back: no coarse mask of 28 x 28 can be learned beyond that mask AP."""
    samples = open_set("scenes:train:8", width=192, height=144)
    truth, results = TruthBuilder(samples.class_names), []
    for sample in samples:
        truth.add(sample)
        masks = BitMasks(torch.from_numpy(sample.masks))
        boxes = masks.get_bounding_boxes()
        drawn = masks.crop_and_resize(boxes.tensor, side).float()
        pasted = paste_masks_in_image(drawn, boxes, sample.masks.shape[1:], threshold=0.5).numpy()
        results += coco_results(sample.image_id, pasted, np.ones(len(pasted)), sample.classes)
    assert low <= coco_ap(truth.build(), results, "segm")["AP"] <= high


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scenes", "val", "--count", "1", "--set", "MODEL.TRANSFINER.NODE_BUDGET", "1"], "did you mean"),
        (["--data", "coco:nowhere.json:images"], "nowhere.json"),
        (["--data", "balloons"], "unknown data set 'balloons'"),
    ],
)
def test_evaluate_says_what_is_wrong_without_a_traceback(options: list[str], message: str) -> None:
    refused = CliRunner().invoke(evaluate, ["--weights", "model/weights/scenes-small", *options])
    assert refused.exit_code == 1
    assert isinstance(refused.exception, SystemExit)
    assert message in refused.output
