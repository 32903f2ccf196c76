"""Outlines learned from a project's masks, and the choice between them and the base's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.checkpoints.checkpoint import load_checkpoint
from model.checkpoints.metadata import read_metadata
from tests.support.snapshots import write_snapshot
from training.datasets import Sample
from training.fewshot import learn, outlines
from training.fewshot.learn import learn_few_shot
from training.fewshot.learner import FewShotLearner
from training.fewshot.outlines import learn_outlines
from training.snapshots.format import SnapshotObject

pytestmark = pytest.mark.slow
PHOTOS = Path(__file__).parents[3] / "model" / "weights" / "photos"
SHORT = replace(outlines.PLAN, batch=4, iterations=12, warm_up=2, ema_decay=0.8)


def _framed_disc(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A disc that people outline together with the ring of ground around it, which no base could know."""
    rng = np.random.default_rng(number)
    image = rng.normal(110, 12, (150, 200, 3)).clip(0, 255).astype(np.uint8)
    x, y, radius = rng.integers(60, 140), rng.integers(55, 95), rng.integers(25, 35)
    rows, columns = np.ogrid[:150, :200]
    distance_px = np.hypot(columns - x, rows - y)
    image[distance_px < radius] = (230, 190, 40)
    return image, distance_px < radius + 3


def _samples(count: int) -> list[Sample]:
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
        learner.network.prompts, _samples(15), tmp_path / "state", plan=SHORT, on_step=steps.append
    )
    assert choice.learned > choice.base
    assert (choice.images, choice.objects, choice.judged) == (12, 12, 3)
    assert steps == list(range(1, 13))
    assert not (tmp_path / "state").exists()
    changed = {name.split(".")[0] for name, values in base.items() if not values.equal(state[name])}
    assert changed == {"pyramid", "mask_head", "quality"}
    assert all(values.equal(learner.network.prompts.state_dict()[name]) for name, values in base.items())
    assert float(np.float32(1e-40) * np.float32(1.0)) > 0, "the process computes with denormal numbers again"


def test_large_pictures_are_reduced_with_their_masks() -> None:
    image, mask = np.zeros((900, 1280, 3), np.uint8), np.zeros((1, 900, 1280), bool)
    mask[0, 300:600, 400:800] = True
    small = outlines._reduced(Sample(image, mask, np.zeros(1, np.int64), np.zeros(1, bool), 7))
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
    monkeypatch.setattr(outlines, "LEAST_IMAGES", 2)
    monkeypatch.setattr(outlines, "PLAN", replace(SHORT, iterations=1))
    monkeypatch.setattr(outlines, "_boundary_iou", _overlaps([0.6, 0.7] if is_better else [0.6, 0.6]))
    checkpoint = learn_few_shot(PHOTOS, snapshot, tmp_path / "out", folds=0)
    state, base = load_checkpoint(checkpoint).state, load_checkpoint(PHOTOS).state
    changed = {name.split(".")[1] for name in base if name.startswith("prompts.") and not state[name].equal(base[name])}
    assert changed == ({"pyramid", "mask_head", "quality"} if is_better else set())
    assert read_metadata(checkpoint)["outlines"]["base"] == 0.6


def _overlaps(values: list[float]):
    given = iter(values)
    return lambda _network, _objects: next(given)
