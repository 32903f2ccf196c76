"""The gate with a real network measures what `transfiner evaluate` measures, and what bf16 costs."""

from __future__ import annotations

from pathlib import Path

import pytest

import model
from model.checkpoints.metadata import read_metadata, update_metadata
from model.inference import precision
from tests.support.snapshots import write_snapshot
from training.evaluation.run import evaluate_checkpoint
from training.gate import GateRules, judge
from training.gate.gate import record_bf16
from training.gate.holdout import DetectionCache, detect_with
from training.snapshots.format import SnapshotObject, open_snapshot
from training.synthetic.scenes import CLASSES, generate_scene

pytestmark = pytest.mark.slow

SHIPPED = Path(model.__file__).parent / "weights" / "scenes-small"


def test_the_gate_measures_what_evaluate_measures(tmp_path: Path) -> None:
    scenes = [generate_scene(1000 + number, width=160, height=120) for number in range(2)]
    pictures = [(scene.image, [SnapshotObject(label, mask) for label, mask in scene.instances]) for scene in scenes]
    snapshot = write_snapshot(pictures, tmp_path, classes=CLASSES, holdout_share=0.999)
    verdict = judge(SHIPPED, None, None, snapshot, rules=GateRules(resamples=100), out=tmp_path / "report")
    expected = evaluate_checkpoint(SHIPPED, open_snapshot(snapshot).open_set("holdout")).refined
    reached = verdict.figures["models"]["candidate"]
    assert verdict.figures["holdout"]["images"] == 2
    for kind in ("mask", "boundary"):
        for name in ("AP", "AP50", "AP75"):
            assert reached[kind][name] == pytest.approx(expected[kind][name], abs=1e-9)
    assert (tmp_path / "report" / "pictures" / "before_after.jpg").is_file()


RULES = GateRules(resamples=100)


def test_it_is_kept_with_the_weights_and_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.training.finetune.tiny_finetune import tiny_checkpoint

    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    classes = read_metadata(checkpoint)["classes"]
    scenes = [generate_scene(number, width=96, height=72) for number in range(5)]
    pictures = [(scene.image, [SnapshotObject(classes[0], mask) for _, mask in scene.instances]) for scene in scenes]
    snapshot = write_snapshot(pictures, tmp_path / "snapshots", classes=classes)
    calls: list[int] = []
    detect = DetectionCache(detect_with(progress=calls.append))

    monkeypatch.setattr(precision, "has_fast_bf16", lambda: False)
    assert record_bf16(checkpoint, snapshot, RULES, detect) is None
    assert "bf16" not in read_metadata(checkpoint), "a processor that is slow at it says nothing"

    monkeypatch.setattr(precision, "has_fast_bf16", lambda: True)
    outcome = record_bf16(checkpoint, snapshot, RULES, detect)
    assert outcome is not None
    assert (outcome["images"], len(calls)) == (5, 5), "few are held out: training images join them"
    for kind in ("mask_ap", "boundary_ap"):
        figures = outcome[kind]
        assert figures["difference"] == pytest.approx(figures["bf16"] - figures["fp32"])
        assert figures["low"] <= figures["high"]
    assert record_bf16(checkpoint, snapshot, RULES, detect) == outcome
    assert len(calls) == 5, "measured once"
    assert precision.is_measured(read_metadata(checkpoint)) == precision.keeps_ap(outcome)
    update_metadata(checkpoint, {"digest": "of other weights"})
    assert not precision.is_measured(read_metadata(checkpoint))
