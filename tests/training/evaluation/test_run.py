"""One pass over a set by several processes gives what one process gives, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoints.checkpoint import save_checkpoint
from model.network import build_network
from tests.support.miniature import write_miniature
from training.benchmark.runner import Scale, training_config
from training.benchmark.tables import TABLES
from training.datasets import CocoSet, Sample, open_set
from training.engine.build import network_config
from training.evaluation.run import evaluate_checkpoint
from training.synthetic.scenes import CLASSES

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network with random weights that finds something everywhere."""
    cfg = training_config(TABLES[5], TABLES[5].rows[1], Scale(miniature=True), seed=0)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 6
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    metadata = {"name": "tiny", "version": "tiny-1", "classes": list(CLASSES), "preset": "paper"}
    save_checkpoint(folder, network_config(cfg), build_network(cfg).state_dict(), metadata)
    return folder


def test_two_processes_see_what_one_sees(tiny: Path) -> None:
    samples, counts, pairs = (
        open_set("scenes:val:3", width=128, height=96),
        list[int](),
        list[tuple[Sample, object]](),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one_process = evaluate_checkpoint(
            tiny, samples, progress=counts.append, observe=lambda *pair: pairs.append(pair)
        )
        two_processes = evaluate_checkpoint(tiny, samples, progress=counts.append, processes=2)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_equal((two_processes.refined, two_processes.coarse), (one_process.refined, one_process.coarse))
    assert counts == [1, 2, 3] * 2
    assert [sample.image_id for sample, _ in pairs] == [samples[index].image_id for index in range(3)]


def test_other_classes_are_refused_before_anything_is_loaded(tiny: Path, tmp_path: Path) -> None:
    write_miniature("coco", tmp_path, train=1, val=1, width=96, height=72)
    samples = CocoSet(tmp_path / "annotations" / "instances_val2017.json", tmp_path / "val2017")
    with pytest.raises(ValueError, match="the checkpoint knows gear"):
        evaluate_checkpoint(tiny, samples)
