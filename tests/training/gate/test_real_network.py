"""The gate measures what `transfiner evaluate` measures: same network, on a snapshot as finetuning gets it."""

from __future__ import annotations

from pathlib import Path

import pytest

import model
from tests.support.snapshots import write_snapshot
from training.evaluation.run import evaluate_checkpoint
from training.gate import GateRules, judge
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
