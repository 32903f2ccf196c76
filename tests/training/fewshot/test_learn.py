"""Learning a snapshot from the shipped model of common things, outlines included, and what comes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.checkpoints.checkpoint import load_checkpoint
from model.checkpoints.metadata import read_metadata
from model.inference.predictor import Predictor
from model.inference.prompt_predictor import PromptPredictor
from model.prompts.answers import Prompt
from tests.support.snapshots import write_snapshot
from training.datasets import Sample
from training.engine.log import read_progress
from training.fewshot import learn
from training.fewshot.curve import class_samples, curve_as_dict, curve_text, fewshot_curve
from training.fewshot.learn import facts_of, learn_few_shot, learn_outlines
from training.fewshot.learner import LOSS_PERIOD, STEPS, FewShotLearner
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
def result_folder(snapshot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "VIEWS_PER_IMAGE", 2)
        learn_few_shot(PHOTOS, snapshot, out, folds=2)
    return out


def test_the_result_serves_and_answers_prompts(result_folder: Path) -> None:
    checkpoint = result_folder / "checkpoint"
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    image, (lantern,) = _picture(99)
    best = predictor([image])[0][0]
    assert best.label == "lantern"
    assert (best.mask_hw & lantern.mask_hw).sum() > 0.7 * (best.mask_hw | lantern.mask_hw).sum()
    answer = PromptPredictor.from_checkpoint(checkpoint, device="cpu").prompt(image, Prompt(box_xyxy=best.box_xyxy))
    assert (answer.mask_hw & lantern.mask_hw).sum() > 0.7 * lantern.mask_hw.sum()


def test_a_known_class_without_objects_keeps_its_rows(result_folder: Path) -> None:
    state, base = load_checkpoint(result_folder / "checkpoint").state, load_checkpoint(PHOTOS)
    person = list(base.metadata["classes"]).index("person")
    for level in range(3):
        rows = state[f"detector.outputs.{level}.weight"]
        assert len(rows) == len(CLASSES) + 44
        assert rows[1].equal(base.state[f"detector.outputs.{level}.weight"][person]), "names differ in case alone"
        assert state[f"detector.outputs.{level}.bias"][2] < -10, "nobody knows what a comet looks like"


def test_folds_hold_the_training_images_and_never_the_hold_out(result_folder: Path, snapshot: Path) -> None:
    facts = json.loads((result_folder / "folds.json").read_text())
    train = {image["sha256"] for image in open_snapshot(snapshot).coco("train")["images"]}
    assert facts["folds"] == 2
    assert set(facts["candidate"]) == train
    assert facts["incumbent"] == {}
    label, score, mask, box = facts["candidate"][min(train)][0]
    assert label == "lantern"
    assert 0 < score <= 1
    assert mask["size"] == [150, 200]
    assert len(box) == 4
    metadata = read_metadata(result_folder / "checkpoint")
    assert set(facts_of(result_folder / "checkpoint", metadata["fewshot"]["base"])["images"]) == train
    assert facts_of(result_folder / "checkpoint", "another base") == {}
    assert facts_of(PHOTOS, metadata["fewshot"]["base"]) == {}


def test_progress_ends_with_done(result_folder: Path) -> None:
    progress = read_progress(result_folder / "progress.json")
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

    def learn_nothing(network: Any, samples: Any, _folder: Path) -> Any:
        taught.append(len(samples))
        return network.state_dict(), learn.OutlineChoice(0.5, 0.6, 1, 1, 1)

    monkeypatch.setattr(learn, "LEAST_OUTLINE_IMAGES", 2)
    monkeypatch.setattr(learn, "learn_outlines", learn_nothing)
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


SHORT = replace(learn.OUTLINE_PLAN, batch=4, iterations=12, warm_up=2, ema_decay=0.8)


def _framed_disc(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A disc that people outline together with the ring of ground around it, which no base could know."""
    rng = np.random.default_rng(number)
    image = rng.normal(110, 12, (150, 200, 3)).clip(0, 255).astype(np.uint8)
    x, y, radius = rng.integers(60, 140), rng.integers(55, 95), rng.integers(25, 35)
    rows, columns = np.ogrid[:150, :200]
    distance_px = np.hypot(columns - x, rows - y)
    image[distance_px < radius] = (230, 190, 40)
    return image, distance_px < radius + 3


def _disc_samples(count: int) -> list[Sample]:
    pictures = [_framed_disc(number) for number in range(count)]
    return [
        Sample(image, mask[None], np.zeros(1, np.int64), np.zeros(1, bool), number)
        for number, (image, mask) in enumerate(pictures)
    ]


@pytest.fixture(scope="module")
def learner() -> FewShotLearner:
    return FewShotLearner(load_checkpoint(PHOTOS), ("disc",))


def test_outlines_come_nearer_to_what_people_draw(learner: FewShotLearner, tmp_path: Path) -> None:
    base = {name: values.clone() for name, values in learner.network.prompts.state_dict().items()}
    steps: list[int] = []
    state, choice = learn_outlines(
        learner.network.prompts, _disc_samples(15), tmp_path / "state", plan=SHORT, on_step=steps.append
    )
    assert choice.learned > choice.base
    assert (choice.images, choice.objects, choice.judged) == (12, 12, 3)
    assert steps == list(range(1, 13))
    assert not (tmp_path / "state").exists()
    changed_parts = {name.split(".")[0] for name, values in base.items() if not values.equal(state[name])}
    assert changed_parts == {"pyramid", "mask_head", "quality"}
    assert all(values.equal(learner.network.prompts.state_dict()[name]) for name, values in base.items())
    assert float(np.float32(1e-40) * np.float32(1.0)) > 0, "the process computes with denormal numbers again"


def test_large_pictures_are_reduced_with_their_masks() -> None:
    image, mask = np.zeros((900, 1280, 3), np.uint8), np.zeros((1, 900, 1280), bool)
    mask[0, 300:600, 400:800] = True
    small = learn._reduced(Sample(image, mask, np.zeros(1, np.int64), np.zeros(1, bool), 7))
    assert small.image.shape == (450, 640, 3)
    assert small.masks.shape == (1, 450, 640)
    assert small.masks[0, 150:300, 200:400].all()
    assert small.masks.sum() == 150 * 200


@pytest.mark.parametrize("is_better", [True, False])
def test_a_version_takes_learned_outlines_where_they_are_better(
    is_better: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [_framed_disc(number) for number in range(6)]
    snapshot = write_snapshot(
        [(image, [SnapshotObject("disc", mask)]) for image, mask in pictures], tmp_path / "snapshots", classes=("disc",)
    )
    monkeypatch.setattr(learn, "VIEWS_PER_IMAGE", 2)
    monkeypatch.setattr(learn, "LEAST_OUTLINE_IMAGES", 2)
    monkeypatch.setattr(learn, "OUTLINE_PLAN", replace(SHORT, iterations=1))
    monkeypatch.setattr(learn, "_boundary_iou", _overlaps([0.6, 0.7] if is_better else [0.6, 0.6]))
    checkpoint = learn_few_shot(PHOTOS, snapshot, tmp_path / "out", folds=0)
    state, base = load_checkpoint(checkpoint).state, load_checkpoint(PHOTOS).state
    changed_parts = {
        name.split(".")[1] for name in base if name.startswith("prompts.") and not state[name].equal(base[name])
    }
    assert changed_parts == ({"pyramid", "mask_head", "quality"} if is_better else set())
    assert read_metadata(checkpoint)["outlines"]["base"] == 0.6


def _overlaps(values: list[float]):
    remaining_values = iter(values)
    return lambda _network, _objects: next(remaining_values)
