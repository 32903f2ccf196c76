"""The plan of a finetuning: its steps, wishes that cannot work, and the samples of a snapshot.

The weights of a snapshot travel through detectron2's sampling into the losses of a whole network.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from model.checkpoints.checkpoint import load_checkpoint
from model.network import build_network
from training.datasets.loader import to_network_input
from training.finetune.plan import FinetuneSettings, SnapshotSamples, relabel_samples

# detectron2 and torch disagree about what is deprecated; nothing of ours is meant.
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*meshgrid.*:UserWarning")
MASK_LOSSES = ("loss_mask", "loss_mask_incoherence", "loss_mask_refine", "loss_mask_boundary")


@pytest.mark.parametrize(
    ("wishes", "images", "share", "steps"),
    [
        pytest.param({}, 20, 1.0, 150, id="30 epochs of tens, 4 images a step"),
        pytest.param({}, 20, 0.5, 300, id="half of each step is replayed"),
        pytest.param({"epochs": 16}, 50, 1.0, 200, id="epochs of the caller's"),
        pytest.param({"epochs": 1}, 50, 1.0, 60, id="no fewer than the preset's fewest"),
        pytest.param({"epochs": 1000}, 50, 1.0, 600, id="no more than its most"),
        pytest.param({"epochs": 16, "batch_size": 8}, 50, 1.0, 100, id="larger steps"),
        pytest.param({"iterations": 7}, 5000, 1.0, 7, id="iterations as they are"),
        pytest.param({}, 5000, 1.0, 7500, id="6 epochs of thousands"),
    ],
)
def test_steps(wishes: dict[str, Any], images: int, share: float, steps: int) -> None:
    assert FinetuneSettings(**wishes).steps(images, share) == steps


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"iterations": 5, "epochs": 2}, r"iterations \(5\) or epochs \(2\), not both"),
        ({"epochs": 0}, "epochs is 0; it must be above 0"),
        ({"iterations": 0}, "iterations is 0; it must be 1 or more"),
        ({"preset": "dozens"}, "preset is 'dozens'; choose auto, tens"),
        ({"replay_share": 0.6, "base_share": 0.5}, "together below 1"),
    ],
)
def test_wishes_that_cannot_work(wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneSettings(**wishes)


def test_a_snapshot_gives_masks_bands_and_weights(snapshot: Path) -> None:
    samples = SnapshotSamples(snapshot, band_weight=4.0)
    sample = samples[0]
    assert (samples.class_names, len(samples)) == (("nut", "gear"), 5)
    assert (sample.weights.tolist(), sample.band_weight) == ([0.5], 4.0)
    ys, xs = np.nonzero(sample.bands[0])
    inside = sample.masks[0][ys.min() : ys.max() + 1]
    assert xs.max() - xs.min() == 3
    assert inside.any(1).all()
    hashes = {image["sha256"] for image in samples.snapshot.coco("train")["images"][1:]}
    assert len(SnapshotSamples(snapshot, without=hashes)) == 1


def test_other_classes_count_as_crowd_and_names_decide(snapshot: Path) -> None:
    samples = SnapshotSamples(snapshot)
    relabelled_samples = relabel_samples(samples, ("bolt", "gear"), {"nut": "bolt"})
    pairs = [(samples[index], relabelled_samples[index]) for index in range(len(samples))]
    assert [int(sample.classes[0]) for sample, _ in pairs] == [int(other.classes[0]) for _, other in pairs]
    without = relabel_samples(samples, ("gear",), {})
    assert {(int(sample.classes[0]), bool(other.crowd[0])) for sample, other in zip(samples, without, strict=True)} == {
        (0, True),
        (1, False),
    }
    assert relabel_samples(samples, ("nut", "gear"), {}) is samples


def test_weights_reach_every_mask_loss_and_leave_the_boxes_alone(checkpoint: Path, snapshot: Path) -> None:
    sample = SnapshotSamples(snapshot, band_weight=1.0)[1]
    network = build_network(load_checkpoint(checkpoint).cfg).train()
    losses = {}
    for factor in (1.0, 0.5, 0.0):
        weighted_sample = replace(sample, weights=np.full(1, factor, np.float32))
        torch.manual_seed(0)
        with EventStorage(0):
            losses[factor] = network([to_network_input(weighted_sample, [], "RGB")])
    for name, value in losses[1.0].items():
        factors = (0.5, 0.0) if name in MASK_LOSSES else (1.0, 1.0)
        expected = [factor * value.item() for factor in factors]
        assert [losses[0.5][name].item(), losses[0.0][name].item()] == pytest.approx(expected, rel=1e-4), name
    assert set(MASK_LOSSES) < set(losses[1.0])
