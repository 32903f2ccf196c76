"""Evaluations and pictures on the way: written down, the best checkpoint kept, and no influence on what is learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from model.checkpoints.metadata import read_metadata
from tests.support.miniature import write_scenes
from training.datasets import BadAnnotationError
from training.engine.build import build_for_training
from training.engine.config import get_training_config
from training.engine.evaluate_while_training import Checks
from training.engine.trainer import Trainer

# detectron2 and torch disagree about what is deprecated; nothing of ours is meant.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*meshgrid.*:UserWarning"),
]


@pytest.fixture
def cfg() -> CfgNode:
    config = get_training_config("training/scenes-small")
    values = {
        "DATASETS.TRAIN": ["scenes:train:2"],
        "DATASETS.TEST": ["scenes:val:2"],
        "MODEL.DEVICE": "cpu",
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (72,),
        "INPUT.MIN_SIZE_TEST": 72,
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.RPN.CONV_DIMS": [16],
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.01,
        "MODEL.TRANSFINER.INCOHERENCE_DIM": 16,
        "MODEL.TRANSFINER.ENCODER_FFN_DIM": 16,
        "MODEL.TRANSFINER.SAMPLES_PER_LEVEL": 8,
        "SOLVER.IMS_PER_BATCH": 1,
        "SOLVER.MAX_ITER": 2,
        "TEST.DETECTIONS_PER_IMAGE": 2,
        "TRAINING.INIT": "",
        "TRAINING.MAX_MINUTES": 0.0,
        "TRAINING.LOG_PERIOD": 1,
        "TRAINING.SCENE_WIDTH": 96,
        "TRAINING.SCENE_HEIGHT": 72,
    }
    config.merge_from_list([part for pair in values.items() for part in pair])
    return config


def train(cfg: CfgNode, folder: Path) -> list[float]:
    Trainer(cfg, build_for_training(cfg), folder).train()
    return [json.loads(line)["total"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def test_a_run_with_checks_learns_what_one_without_does_and_keeps_its_best(cfg: CfgNode, tmp_path: Path) -> None:
    plain = train(cfg, tmp_path / "plain")
    cfg.TEST.EVAL_PERIOD = 1
    checked = tmp_path / "checked"
    assert train(cfg, checked) == plain
    lines = [json.loads(line) for line in (checked / "evaluations.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert set(lines[0]) == {"iteration", "mask_AP", "boundary_AP", "coarse_mask_AP", "coarse_boundary_AP"}
    assert read_metadata(checked / "best")["evaluation"]["mask_AP"] == max(line["mask_AP"] for line in lines)
    events = b"".join(path.read_bytes() for path in (checked / "tensorboard").iterdir())
    assert b"evaluation/mask_AP" in events


def test_a_damaged_test_picture_is_skipped_where_that_is_the_policy(cfg: CfgNode, tmp_path: Path) -> None:
    written = write_scenes(tmp_path, "val", range(2), width=96, height=72)
    written.images[0].write_bytes(written.images[0].read_bytes()[:200])
    cfg.DATASETS.TEST = [f"coco:{written.annotations}:{tmp_path / 'images'}"]
    cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD = 1, 1
    with pytest.raises(BadAnnotationError, match=r"val-000000\.png: image: damaged image"):
        train(cfg, tmp_path / "fatal")
    cfg.TRAINING.MISSING_IMAGES = "skip"
    train(cfg, tmp_path / "skip")
    assert len((tmp_path / "skip" / "evaluations.jsonl").read_text().splitlines()) == 1


def test_an_evaluation_is_due_once_and_at_the_end(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.TEST.EVAL_PERIOD = 10
    checks = Checks(cfg, tmp_path)
    assert [checks.evaluation_due(iteration) for iteration in (0, 9, 10, 11)] == [False, False, True, False]
    assert checks.evaluation_due(11, last=True)
    (tmp_path / "evaluations.jsonl").write_text('{"iteration": 10}\n')
    assert not checks.evaluation_due(10)
    cfg.TEST.EVAL_PERIOD = 0
    assert not checks.evaluation_due(10, last=True)


def test_checks_that_cannot_work_are_refused(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.TRAINING.BEST_BY = "box"
    with pytest.raises(ValueError, match="choose mask or boundary"):
        Checks(cfg, tmp_path)
    cfg.TRAINING.BEST_BY, cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD = "boundary", (), 5
    with pytest.raises(ValueError, match=r"needs a set in DATASETS\.TEST"):
        Checks(cfg, tmp_path)
