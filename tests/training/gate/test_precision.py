"""What bf16 costs a version that was just learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoints.metadata import read_metadata, update_metadata
from model.precision import is_measured
from tests.support.snapshots import write_snapshot
from training.gate import GateRules, precision
from training.gate.detections import DetectionCache, detect_with
from training.snapshots.format import SnapshotObject
from training.synthetic.scenes import generate_scene

pytestmark = pytest.mark.slow
RULES = GateRules(resamples=100)


def test_it_is_kept_with_the_weights_and_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.training.finetune.tiny_finetune import tiny_checkpoint

    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    classes = read_metadata(checkpoint)["classes"]
    scenes = [generate_scene(number, width=96, height=72) for number in range(5)]
    pictures = [(scene.image, [SnapshotObject(classes[0], mask) for _, mask in scene.instances]) for scene in scenes]
    snapshot = write_snapshot(pictures, tmp_path / "snapshots", classes=classes)
    looked: list[int] = []
    detect = DetectionCache(detect_with(progress=looked.append))

    monkeypatch.setattr(precision, "has_fast_bf16", lambda: False)
    assert precision.record_bf16(checkpoint, snapshot, RULES, detect) is None
    assert "bf16" not in read_metadata(checkpoint), "a processor that is slow at it says nothing"

    monkeypatch.setattr(precision, "has_fast_bf16", lambda: True)
    outcome = precision.record_bf16(checkpoint, snapshot, RULES, detect)
    assert outcome is not None
    assert (outcome["images"], len(looked)) == (5, 5), "few are held out: training images join them"
    for kind in ("mask_ap", "boundary_ap"):
        figures = outcome[kind]
        assert figures["difference"] == pytest.approx(figures["bf16"] - figures["fp32"])
        assert figures["low"] <= figures["high"]
    assert precision.record_bf16(checkpoint, snapshot, RULES, detect) == outcome
    assert len(looked) == 5, "measured once"
    assert is_measured(read_metadata(checkpoint)) == precision.keeps_ap(outcome)
    update_metadata(checkpoint, {"digest": "of other weights"})
    assert not is_measured(read_metadata(checkpoint))
