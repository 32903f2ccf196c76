"""The gate lets better models through and nothing else, by hold-out or cross-validation; it says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.checkpoints.metadata import CheckpointError
from tests.training.gate.conftest import World
from training.datasets import CocoSet
from training.gate import GateRules, Verdict, judge
from training.gate.verdict import parse_rules, tail_share
from training.snapshots.format import encode_rle, pixels_sha256

if TYPE_CHECKING:
    from tests.training.gate.conftest import World

FEW = GateRules(resamples=300)


def ruled(world: World, candidate: Path, incumbent: Path | None, holdout: Path, **more: object) -> Verdict:
    arguments = {"best_served": None, "rules": FEW, **more}
    return judge(candidate, incumbent, holdout=holdout, detect=world.detect, **arguments)  # type: ignore[arg-type]


def test_identical_models_are_never_better(world: World) -> None:
    for images in (3, 12, 40):
        holdout = world.snapshot(f"s{images}", images)
        models = [world.model(f"{name}{images}", world.shifted_by(3)) for name in ("old", "new")]
        verdict = ruled(world, models[1], models[0], holdout)
        assert not verdict.promote
        change = verdict.figures["changes"]["incumbent"]["mask"]["AP"]
        assert (change["change"], change["low"], change["high"]) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_a_clearly_better_model_is_promoted(world: World, seed: int) -> None:
    holdout = world.snapshot("s", 24, seed=seed)
    old, new = world.model("old", world.shifted_by(4)), world.model("new", world.shifted_by(1), seed=2)
    verdict = ruled(world, new, old, holdout)
    assert verdict.promote, verdict.table()
    assert verdict.reasons[0].startswith("better than the incumbent: mask AP +")
    assert verdict.metrics["mask_ap"] == verdict.figures["models"]["candidate"]["mask"]["AP"]


@pytest.mark.parametrize("seed", range(5))
def test_a_poisoned_model_is_refused(world: World, seed: int) -> None:
    holdout = world.snapshot("s", 24, seed=seed)
    old, candidate = world.model("old", world.shifted_by(2)), world.model("new", world.shifted_by(6), seed=2)
    verdict = ruled(world, candidate, old, holdout)
    assert not verdict.promote
    assert verdict.reasons[0].startswith("worse than the incumbent: mask AP -")


def test_swapped_labels_are_refused(world: World) -> None:
    holdout = world.snapshot("s", 16)
    old, new = world.model("old", world.shifted_by(2)), world.model("new", world.shifted_by(0))

    def swapping(directory: Path, samples):  # type: ignore[no-untyped-def]
        results = world.detect(directory, samples)
        swapped_label = {"cat": "dog", "dog": "cat"}
        if directory == new:
            results = [
                [
                    type(detection)(swapped_label[detection.label], detection.score, detection.segmentation)
                    for detection in detections
                ]
                for detections in results
            ]
        return results

    assert not judge(new, old, None, holdout, rules=FEW, detect=swapping).promote


def test_models_of_equal_quality_are_seldom_promoted(world: World) -> None:
    """5 % is what the rules allow; `rules.py` tells what was measured over many more worlds, here it is watched."""
    promotions = 0
    for number in range(8):
        holdout = world.snapshot(f"s{number}", 16, seed=number)
        old = world.model(f"old{number}", world.shifted_by(3), seed=1)
        new = world.model(f"new{number}", world.shifted_by(3), seed=2)
        promotions += ruled(world, new, old, holdout, rules=GateRules(resamples=100)).promote
    assert promotions <= 2


def test_a_first_version_needs_a_figure_of_its_own(world: World) -> None:
    holdout = world.snapshot("s", 4)
    good = ruled(world, world.model("good", world.shifted_by(1)), None, holdout)
    assert good.promote
    assert "first version" in good.reasons[0]
    assert "judged by 4 images held out" in good.reasons[1]
    assert "4 annotated images: the figures are rough" in good.reasons[1]
    assert not ruled(world, world.model("blind", world.blind()), None, holdout).promote


@pytest.mark.parametrize(("off_px", "is_promoted"), [(0, True), (3, False)])
def test_a_tiny_holdout_asks_for_a_clear_gain_and_says_so(world: World, off_px: int, is_promoted: bool) -> None:
    holdout = world.snapshot("s", 5)
    old, new = world.model("old", world.shifted_by(3)), world.model("new", world.shifted_by(off_px), seed=3)
    verdict = ruled(world, new, old, holdout)
    assert verdict.promote == is_promoted
    assert "5 annotated images, fewer than 10: no confidence can be stated" in verdict.reasons[0]
    assert any("5 more annotated images" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(("distort", "is_promoted"), [("found", True), ("blind", False)])
def test_the_first_model_of_unknown_labels_serves_when_it_beats_nothing(
    world: World, distort: str, is_promoted: bool
) -> None:
    holdout = world.snapshot("s", 2, classes=("cat",))
    old = world.model("old", world.shifted_by(0), classes=("dog",))
    way = world.shifted_by(1) if distort == "found" else world.blind()
    verdict = ruled(world, world.model("new", way, classes=("cat",)), old, holdout)
    assert verdict.promote == is_promoted
    assert "the incumbent knows none of: cat" in verdict.reasons[0]
    assert ("beats nothing" if is_promoted else "finds nothing either") in verdict.reasons[0]
    assert any("2 annotated images: the figures are rough" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("incumbent", [True, False])
def test_an_empty_holdout_measures_nothing_and_promotes_nothing(world: World, incumbent: bool) -> None:
    old = world.model("old", world.shifted_by(3)) if incumbent else None
    verdict = ruled(world, world.model("new", world.shifted_by(0)), old, world.snapshot("s", 0))
    assert not verdict.promote
    assert "no annotated image" in verdict.reasons[0]
    json.dumps(verdict.as_dict(), allow_nan=False)
    assert "is refused" in verdict.table()


def test_a_class_that_the_incumbent_does_not_know_counts_as_never_found(world: World) -> None:
    holdout = world.snapshot("s", 20)
    old = world.model("old", world.shifted_by(2), classes=("cat",))
    verdict = ruled(world, world.model("new", world.shifted_by(2)), old, holdout)
    assert verdict.promote, verdict.table()
    assert "the incumbent does not know dog: counted as never found" in verdict.reasons
    assert verdict.figures["models"]["incumbent"]["mask"]["AP/dog"] == 0


def test_a_new_class_does_not_pay_for_one_that_got_worse(world: World) -> None:
    holdout = world.snapshot("s", 20)
    old = world.model("old", world.shifted_by(0), classes=("cat",))
    verdict = ruled(world, world.model("new", world.shifted_by(4)), old, holdout)
    assert not verdict.promote
    assert any("worse on the classes that the incumbent knows" in reason for reason in verdict.reasons)
    assert any(reason.startswith("class cat is worse") for reason in verdict.reasons)


def test_what_was_forgotten_is_refused(world: World) -> None:
    holdout, before = world.snapshot("new", 20, seed=1), world.snapshot("old", 12, seed=2)
    old, new = world.model("old", world.shifted_by(3)), world.model("new", world.shifted_by(0))

    def forgetting(directory: Path, samples):  # type: ignore[no-untyped-def]
        results = world.detect(directory, samples)
        return [[] for _ in results] if directory == new and len(samples) == 12 else results

    assert judge(new, old, None, holdout, rules=FEW, detect=world.detect).promote
    verdict = judge(new, old, None, holdout, earlier=[before], rules=FEW, detect=forgetting)
    assert not verdict.promote
    assert verdict.reasons[0].startswith("forgot what it knew of the earlier hold-out old: mask AP -")
    assert verdict.figures["earlier"][0]["images"] == 12


def test_a_class_that_left_the_project_may_be_forgotten(world: World) -> None:
    holdout, before = world.snapshot("new", 20, seed=1, classes=("cat",)), world.snapshot("old", 12, seed=2)
    old = world.model("old", world.shifted_by(3))
    new = world.model("new", world.shifted_by(0), classes=("cat",))
    verdict = judge(new, old, None, holdout, earlier=[before], rules=FEW, detect=world.detect)
    assert verdict.promote, verdict.table()
    assert verdict.figures["earlier"][0]["classes"] == ["cat"]


def test_small_earlier_holdouts_are_said_to_be_too_small(world: World) -> None:
    old, new = world.model("old", world.shifted_by(3)), world.model("new", world.shifted_by(0))
    earlier = [world.snapshot("few", 4, seed=2), world.snapshot("none", 0)]
    verdict = ruled(world, new, old, world.snapshot("s", 12), earlier=earlier)
    assert verdict.promote
    assert "earlier hold-out few has 4 annotated images, too few to judge on" in verdict.reasons


def test_worse_than_the_best_ever_is_refused(world: World) -> None:
    holdout = world.snapshot("s", 24)
    models = [world.model(name, world.shifted_by(off)) for name, off in (("old", 5), ("new", 3), ("best", 0))]
    assert ruled(world, models[1], models[0], holdout).promote
    verdict = ruled(world, models[1], models[0], holdout, best_served=models[2])
    assert not verdict.promote
    assert "best, the best version so far, is better" in verdict.reasons[0]


def test_each_model_looks_at_each_picture_once(world: World) -> None:
    holdout, before = world.snapshot("s", 12), world.snapshot("before", 5)  # the same pictures
    old, new = world.model("old", world.shifted_by(3)), world.model("new", world.shifted_by(0))
    ruled(world, new, old, holdout, earlier=[before], out=world.folder / "report")
    assert sorted(world.calls) == [("new", 12), ("old", 12)]


@pytest.mark.parametrize("incumbent", [True, False])
def test_the_report_has_everything_to_show(world: World, incumbent: bool) -> None:
    old = world.model("old", world.shifted_by(3)) if incumbent else None
    out = world.folder / "report"
    verdict = ruled(world, world.model("new", world.shifted_by(0)), old, world.snapshot("s", 12), out=out)
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        "MODEL_CARD.md",
        "pictures/before_after.jpg",
        "report.json",
        "report.md",
    ]
    assert json.loads((out / "report.json").read_text()) == verdict.as_dict()
    assert "![before_after](pictures/before_after.jpg)" in (out / "MODEL_CARD.md").read_text()
    assert "mask AP" in (out / "report.md").read_text()


def test_what_is_only_a_box_counts_neither_way(world: World) -> None:
    holdout = world.snapshot("s", 12)
    file = holdout / "holdout.json"
    coco = json.loads(file.read_text())
    for annotation in coco["annotations"][::2]:
        annotation["box_only"] = True
    file.write_text(json.dumps(coco))
    old, new = world.model("old", world.shifted_by(3)), world.model("new", world.shifted_by(0))
    verdict = ruled(world, new, old, holdout)
    assert verdict.figures["models"]["candidate"]["mask"]["AP"] == 1
    assert verdict.figures["holdout"]["to_be_found"] == 12


def test_the_table_shows_models_side_by_side(world: World) -> None:
    holdout = world.snapshot("s", 12)
    old, new = world.model("old", world.shifted_by(3)), world.model("new", world.shifted_by(0))
    lines = ruled(world, new, old, holdout).table().splitlines()
    assert lines[0] == "new may serve, judged by 12 images held out: 24 objects."
    assert lines[2].split() == ["AP", "in", "points", "candidate", "incumbent", "change", "[interval]"]
    assert lines[3].startswith("mask AP")
    assert "100.0" in lines[3]


def test_wrong_folders_are_named(world: World) -> None:
    model = world.model("new", world.shifted_by(0))
    with pytest.raises(FileNotFoundError, match=r"is no snapshot: holdout\.json is missing"):
        ruled(world, model, None, world.folder)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        ruled(world, world.folder, None, world.snapshot("s", 1))


@pytest.mark.parametrize(
    ("confidence", "images", "expected"), [(0.95, 10**6, 0.025), (0.95, 12, 0.01075), (0.9, 10, 0.0267), (0.95, 1, 0.0)]
)
def test_few_images_widen_the_interval(confidence: float, images: int, expected: float) -> None:
    assert tail_share(confidence, images) == pytest.approx(expected, abs=1e-4)


WRONG_RULES = [
    ({"confidance": 0.9}, "did you mean confidence"),
    ({"confidence": "high"}, "is 'high'; expected a number"),
    ({"confidence": 0.3}, "expected 0.5 to 0.9999"),
    ({"resamples": 10.5}, "expected a whole number"),
    ({"margin": True}, "expected a number"),
]


@pytest.mark.parametrize(("values", "message"), WRONG_RULES)
def test_wrong_rules_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_rules(values)


def test_rules_come_from_json() -> None:
    assert parse_rules({"confidence": 0.9, "resamples": 200.0}) == GateRules(confidence=0.9, resamples=200)


def test_verdicts_can_be_read_without_torch() -> None:
    code = "import sys, training.gate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


RULES = GateRules(resamples=100)


def _snapshot(world: World, holdout_count: int, train_count: int) -> Path:
    directory = world.snapshot("s", holdout_count)
    train_snapshot = world.snapshot("t", train_count, seed=5)
    for file in (train_snapshot / "images").iterdir():
        file.rename(directory / "images" / file.name)
    (train_snapshot / "holdout.json").rename(directory / "train.json")
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
    snapshot = _snapshot(world, holdout_count=2, train_count=10)
    new, old = world.model("new", world.shifted_by(0)), world.model("old", world.shifted_by(3))
    folds = _perfect_folds(snapshot, tmp_path / "folds.json", ("candidate",))
    verdict = judge(new, old, old, snapshot, rules=RULES, detect=world.detect, folds=folds)
    assert verdict.promote, verdict.table()
    assert dict(world.calls) == {"new": 2, "old": 12}, "the candidate looks at what it never learned from"
    holdout = verdict.figures["holdout"]
    assert (holdout["images"], holdout["held_out"], holdout["folds"]) == (12, 2, 4)
    assert "best" not in verdict.figures["models"]
    assert any("cross-validation of 10 images in 4 folds, and 2 images held out" in text for text in verdict.reasons)
    assert any("95 % confidence mask AP lies between" in text for text in verdict.reasons)


def test_an_incumbent_that_learned_from_the_images_is_cross_validated_too(world: World, tmp_path: Path) -> None:
    snapshot = _snapshot(world, holdout_count=2, train_count=10)
    new, old = world.model("new", world.shifted_by(0)), world.model("old", world.shifted_by(0), seed=2)
    folds = _perfect_folds(snapshot, tmp_path / "folds.json", ("candidate", "incumbent"))
    verdict = judge(new, old, None, snapshot, rules=RULES, detect=world.detect, folds=folds)
    assert not verdict.promote
    assert dict(world.calls) == {"new": 2, "old": 2}


def test_a_large_enough_hold_out_decides_alone(world: World, tmp_path: Path) -> None:
    snapshot = _snapshot(world, holdout_count=10, train_count=4)
    new, old = world.model("new", world.shifted_by(0)), world.model("old", world.shifted_by(3))
    folds = _perfect_folds(snapshot, tmp_path / "folds.json", ("candidate",))
    verdict = judge(new, old, None, snapshot, rules=RULES, detect=world.detect, folds=folds)
    assert verdict.figures["holdout"]["folds"] == 0
    assert any("judged by 10 images held out" in text for text in verdict.reasons)
