"""Cross-validation in place of a hold-out that is too small."""

from __future__ import annotations

import json
from pathlib import Path

from tests.training.gate.conftest import World
from training.datasets import CocoSet
from training.gate import GateRules, judge
from training.snapshots.format import encode_rle, pixels_sha256

RULES = GateRules(resamples=100)


def _snapshot(world: World, held_out: int, trained: int) -> Path:
    directory = world.snapshot("s", held_out)
    other = world.snapshot("t", trained, seed=5)
    for file in (other / "images").iterdir():
        file.rename(directory / "images" / file.name)
    (other / "holdout.json").rename(directory / "train.json")
    return directory


def _perfect_folds(snapshot: Path, file: Path, roles: tuple[str, ...]) -> Path:
    samples = CocoSet(snapshot / "train.json", snapshot / "images")
    detections = {}
    for index in range(len(samples)):
        sample = samples[index]
        masks = zip(sample.classes, sample.masks, strict=True)
        detections[pixels_sha256(sample.image)] = [
            [samples.class_names[label], 0.9, encode_rle(mask)] for label, mask in masks
        ]
    file.write_text(json.dumps({"folds": 4, **dict.fromkeys(roles, detections)}))
    return file


def test_folds_decide_where_the_hold_out_is_tiny(world: World, tmp_path: Path) -> None:
    snapshot = _snapshot(world, held_out=2, trained=10)
    new, old = world.model("new", world.shifted_by(0)), world.model("old", world.shifted_by(3))
    folds = _perfect_folds(snapshot, tmp_path / "folds.json", ("candidate",))
    verdict = judge(new, old, old, snapshot, rules=RULES, detect=world.detect, folds=folds)
    assert verdict.promote, verdict.table()
    assert dict(world.looked) == {"new": 2, "old": 12}, "the candidate looks at what it never learned from"
    holdout = verdict.figures["holdout"]
    assert (holdout["images"], holdout["held_out"], holdout["folds"]) == (12, 2, 4)
    assert "best" not in verdict.figures["models"]
    assert any("cross-validation of 10 images in 4 folds, and 2 images held out" in text for text in verdict.reasons)
    assert any("95 % confidence mask AP lies between" in text for text in verdict.reasons)


def test_an_incumbent_that_learned_from_the_images_is_cross_validated_too(world: World, tmp_path: Path) -> None:
    snapshot = _snapshot(world, held_out=2, trained=10)
    new, old = world.model("new", world.shifted_by(0)), world.model("old", world.shifted_by(0), seed=2)
    folds = _perfect_folds(snapshot, tmp_path / "folds.json", ("candidate", "incumbent"))
    verdict = judge(new, old, None, snapshot, rules=RULES, detect=world.detect, folds=folds)
    assert not verdict.promote
    assert dict(world.looked) == {"new": 2, "old": 2}


def test_a_large_enough_hold_out_decides_alone(world: World, tmp_path: Path) -> None:
    snapshot = _snapshot(world, held_out=10, trained=4)
    new, old = world.model("new", world.shifted_by(0)), world.model("old", world.shifted_by(3))
    folds = _perfect_folds(snapshot, tmp_path / "folds.json", ("candidate",))
    verdict = judge(new, old, None, snapshot, rules=RULES, detect=world.detect, folds=folds)
    assert verdict.figures["holdout"]["folds"] == 0
    assert any("judged by 10 images held out" in text for text in verdict.reasons)
