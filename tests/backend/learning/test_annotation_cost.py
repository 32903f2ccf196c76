"""Effort in the service: its score on predictions, its commands, the simulated annotator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backend.cli.main import cli
from backend.learning.annotation_cost import CorrectionCost, measure_correction_cost, simulated_edit, snapshot_samples
from backend.worker.task_runner import find_scorer
from integration.label_studio.label_config import Output, parse_label_config
from integration.regions.write import build_prediction, certainty
from model.checkpoints.checkpoint import save_checkpoint
from model.checkpoints.metadata import update_metadata
from model.inference.predictor import Predictor
from model.instance import Instance
from tests.support.learning_doubles import write_checkpoint
from tests.support.small_network import CLASSES, small_config, small_model
from tests.support.snapshots import write_snapshot
from training.datasets import Sample
from training.snapshots.annotation_cost import FEATURES, EffortError, EffortModel, load_effort
from training.snapshots.format import SnapshotObject

SIZE = (40, 50)
CONFIG = parse_label_config(
    '<View><Image name="image" value="$image"/><PolygonLabels name="poly" toName="image"><Label value="cat"/>'
    "</PolygonLabels></View>"
)


def instance(left: int, top: int, right: int, bottom: int, label: str = "cat", score: float = 0.9) -> Instance:
    mask_hw = np.zeros(SIZE, bool)
    mask_hw[top:bottom, left:right] = True
    return Instance((left, top, right, bottom), label, score, mask_hw)


def effort(rank_correlation: float = 0.6) -> EffortModel:
    return EffortModel(dict.fromkeys(FEATURES, 1.0), 2.0, 10.0, 30, rank_correlation, 0.3)


def score_of(directory: Path, instances: list[Instance]) -> float:
    prediction, _ = build_prediction(
        instances,
        CONFIG,
        width=SIZE[1],
        height=SIZE[0],
        model_version="v",
        output=Output(score_threshold=0.5),
        scorer=find_scorer(directory),
    )
    score: float = prediction["score"]
    return score


def test_predictions_carry_the_score_of_their_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown, hidden = instance(5, 5, 25, 20), instance(30, 5, 45, 20, score=0.4)
    today = certainty([shown])
    assert score_of(tmp_path / "nowhere", [shown, hidden]) == today
    write_checkpoint(tmp_path, "v", "weights")
    assert score_of(tmp_path, [shown, hidden]) == today  # not calibrated
    effort().save(tmp_path)
    assert score_of(tmp_path, [shown, hidden]) == effort().score([shown], [hidden])
    assert score_of(tmp_path, [shown, hidden]) < score_of(tmp_path, [shown])
    effort(rank_correlation=0.2).save(tmp_path)
    assert score_of(tmp_path, [shown, hidden]) == today  # orders worse than today's
    update_metadata(tmp_path, {"effort": {"weights": {"objects": -1.0}}})
    assert score_of(tmp_path, [shown, hidden]) == today
    assert "ordered by the score without calibration" in caplog.text


def sample(*objects: tuple[int, tuple[int, int, int, int], bool]) -> Sample:
    masks = np.zeros((len(objects), *SIZE), bool)
    for mask_hw, (_, (left, top, right, bottom), _) in zip(masks, objects, strict=True):
        mask_hw[top:bottom, left:right] = True
    image = np.zeros((*SIZE, 3), np.uint8)
    crowd = np.array([is_crowd for _, _, is_crowd in objects], bool)
    return Sample(image, masks, np.array([label for label, _, _ in objects], np.int64), crowd, 1)


HERE = (5, 5, 25, 20)


@pytest.mark.parametrize(
    ("shown", "truth", "cost"),
    [
        ([instance(*HERE)], [(0, HERE, False)], 0),
        ([instance(*HERE)], [(1, HERE, False)], 2),
        ([instance(*HERE)], [], 2),
        ([], [(0, HERE, False)], 3 + 4),
        ([instance(5, 5, 30, 20)], [(0, HERE, False)], 2),
        ([instance(*HERE)], [(0, HERE, True)], 0),  # in a crowd: nobody's work
        ([], [(0, HERE, True)], 0),
        ([], [], 0),
    ],
)
def test_the_simulated_annotator(
    shown: list[Instance], truth: list[tuple[int, tuple[int, int, int, int], bool]], cost: float
) -> None:
    assert simulated_edit(shown, sample(*truth), ("cat", "dog")) == cost


class FakePredictor:
    """The same for every image."""

    labels, version, weights_bytes, device = ("cat", "bird"), "v", 0, "cpu"

    def smaller(self, divisor: int) -> FakePredictor:
        return self

    def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]:
        detections = [instance(*HERE), instance(30, 5, 45, 20, score=0.3), instance(*HERE, label="bird")]
        return [detections for _ in images]


def test_measuring_counts_what_is_shown() -> None:
    cost = measure_correction_cost(FakePredictor(), [sample((0, HERE, False))], ("cat", "dog"))
    assert cost.edits == [0.0]
    assert cost.confidence == [pytest.approx(0.9)]
    assert cost.certainty == [pytest.approx(0.9)]
    assert (cost.features[0]["objects"], cost.features[0]["hidden"]) == (1, pytest.approx(0.3))
    empty_cost = CorrectionCost()
    empty_cost.add([], lambda shown: 0.0, 0.5)
    assert empty_cost.confidence == [0.0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("store") / "small"
    save_checkpoint(directory, small_config(), small_model(), {"name": "s", "version": "1", "classes": list(CLASSES)})
    return directory


@pytest.mark.slow
def test_calibrating_and_comparing_a_model_on_a_snapshot(checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content = []
    for number in range(90):
        image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        objects = [
            SnapshotObject(CLASSES[0], instance(5 + 10 * n, 5, 12 + 10 * n, 20).mask_hw) for n in range(number % 4)
        ]
        content.append((image, objects))
    snapshot = write_snapshot(content, tmp_path, classes=CLASSES)
    options = ["--weights", str(checkpoint), "--snapshot", str(snapshot), "--device", "cpu", "--shown-from", "0.01"]
    result = CliRunner().invoke(cli, ["effort", "compare", *options, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    held_out = facts["images"]
    assert 20 <= held_out < 90, "the others were learned from"
    assert set(facts["orders"]) == {"expected edit", "score * (1 - uncertainty)", "mean confidence"}
    model = fit(checkpoint, snapshot, 100)
    model.save(checkpoint)
    effort = load_effort(checkpoint)
    assert effort is not None
    assert effort.images == held_out
    again = CliRunner().invoke(cli, ["effort", "compare", *options])
    assert f"fitted on snapshot {snapshot.name[:12]}" in again.stdout
    with pytest.raises(EffortError, match="expected 20 images"):
        fit(checkpoint, snapshot, 5)


def fit(checkpoint: Path, snapshot: Path, count: int) -> EffortModel:
    samples, classes, name = snapshot_samples(snapshot, count, with_training=False)
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu", score_threshold=0.005)
    return measure_correction_cost(predictor, samples, classes, shown_from=0.01).fit(name)
