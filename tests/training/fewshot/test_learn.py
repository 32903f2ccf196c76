"""Learning a snapshot from the shipped model of common things, and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.checkpoints.checkpoint import load_checkpoint
from model.checkpoints.metadata import read_metadata
from model.predictor import Predictor
from model.prompt_predictor import PromptPredictor
from model.prompts.answers import Prompt
from tests.support.snapshots import write_snapshot
from training.engine.log import read_progress
from training.fewshot import learn, outlines
from training.fewshot.class_rows import LOSS_PERIOD, STEPS
from training.fewshot.curve import class_samples, curve_as_dict, curve_text, fewshot_curve
from training.fewshot.learn import facts_of, learn_few_shot
from training.snapshots.format import SnapshotObject, open_snapshot

pytestmark = pytest.mark.slow
PHOTOS = Path(__file__).parents[3] / "model" / "weights" / "photos"
CLASSES = ("lantern", "Person", "comet")


def _picture(number: int) -> tuple[np.ndarray, list[SnapshotObject]]:
    """A bright disc with a dark bar on a grey ground: a lantern."""
    rng = np.random.default_rng(number)
    image = rng.normal(110, 12, (150, 200, 3)).clip(0, 255).astype(np.uint8)
    x, y, radius = rng.integers(60, 140), rng.integers(55, 95), rng.integers(28, 45)
    rows, columns = np.ogrid[:150, :200]
    disc = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    image[disc] = (230, 190, 40)
    image[disc & (np.abs(rows - y) < 6)] = (60, 20, 20)
    return image, [SnapshotObject("lantern", disc)]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snapshots")
    return write_snapshot([_picture(number) for number in range(6)], folder, classes=CLASSES)


@pytest.fixture(scope="module")
def learned(snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "VIEWS_PER_IMAGE", 2)
        learn_few_shot(PHOTOS, snapshot, out, folds=2)
    return out


def test_the_result_serves_and_answers_prompts(learned: Path) -> None:
    checkpoint = learned / "checkpoint"
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    image, (lantern,) = _picture(99)
    best = predictor([image])[0][0]
    assert best.label == "lantern"
    assert (best.mask_hw & lantern.mask_hw).sum() > 0.7 * (best.mask_hw | lantern.mask_hw).sum()
    asked = PromptPredictor.from_checkpoint(checkpoint, device="cpu").prompt(image, Prompt(box_xyxy=best.box_xyxy))
    assert (asked.mask_hw & lantern.mask_hw).sum() > 0.7 * lantern.mask_hw.sum()


def test_a_known_class_without_objects_keeps_its_rows(learned: Path) -> None:
    state, base = load_checkpoint(learned / "checkpoint").state, load_checkpoint(PHOTOS)
    person = list(base.metadata["classes"]).index("person")
    for level in range(3):
        rows = state[f"detector.outputs.{level}.weight"]
        assert len(rows) == len(CLASSES) + 44
        assert rows[1].equal(base.state[f"detector.outputs.{level}.weight"][person]), "names differ in case alone"
        assert state[f"detector.outputs.{level}.bias"][2] < -10, "nobody knows what a comet looks like"


def test_folds_hold_the_training_images_and_never_the_hold_out(learned: Path, snapshot: Path) -> None:
    facts = json.loads((learned / "folds.json").read_text())
    train = {image["sha256"] for image in open_snapshot(snapshot).coco("train")["images"]}
    assert facts["folds"] == 2
    assert set(facts["candidate"]) == train
    assert facts["incumbent"] == {}
    label, score, mask, box = facts["candidate"][min(train)][0]
    assert label == "lantern"
    assert 0 < score <= 1
    assert mask["size"] == [150, 200]
    assert len(box) == 4
    metadata = read_metadata(learned / "checkpoint")
    assert set(facts_of(learned / "checkpoint", metadata["fewshot"]["base"])["images"]) == train
    assert facts_of(learned / "checkpoint", "another base") == {}
    assert facts_of(PHOTOS, metadata["fewshot"]["base"]) == {}


def test_progress_ends_with_done(learned: Path) -> None:
    progress = read_progress(learned / "progress.json")
    assert progress is not None
    assert (progress.phase, progress.eta_s) == ("done", 0.0)
    steps, losses = zip(*progress.curve, strict=True)
    assert (steps[0], steps[-1], len(steps)) == (LOSS_PERIOD, STEPS, STEPS // LOSS_PERIOD), "of the last fit alone"
    assert losses[-1] < losses[0]


def test_another_network_is_refused(snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="few-shot learning starts from a PromptedDetector"):
        learn_few_shot(PHOTOS.with_name("scenes-small"), snapshot, tmp_path)


def test_the_curve_draws_nested_images(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught: list[int] = []

    def learned(network: Any, samples: Any, _folder: Path) -> Any:
        taught.append(len(samples))
        return network.state_dict(), outlines.OutlineChoice(0.5, 0.6, 1, 1, 1)

    monkeypatch.setattr(outlines, "LEAST_IMAGES", 2)
    monkeypatch.setattr(outlines, "learn_outlines", learned)
    train = class_samples(open_snapshot(snapshot).open_set("train"), ("lantern",))
    test = class_samples(open_snapshot(snapshot).open_set("holdout"), ("lantern",), all_images=True)
    points = fewshot_curve(PHOTOS, train, test, [1, 2], 1)
    assert [point.images for point in points] == [1, 2]
    assert taught == [2], "outlines are learned from as many images as the service asks for"
    assert curve_text(points).count("\n") == 2
    assert curve_as_dict(points)["means"][1]["draws"] == 1  # type: ignore[index]
    with pytest.raises(ValueError, match="99 images were asked for"):
        fewshot_curve(PHOTOS, train, test, [99], 1)
    with pytest.raises(ValueError, match="no class otter"):
        class_samples(open_snapshot(snapshot).open_set("train"), ("otter",))
