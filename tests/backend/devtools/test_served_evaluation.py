"""`transfiner evaluate --served` against a real API over HTTP: gaps, authorisation, deferral, failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backend.cli.train.evaluate import evaluate
from backend.devtools.harness import label_config
from backend.devtools.served_evaluation import (
    Served,
    ServedApiClient,
    ServedError,
    detections_above,
    notes,
    predict_set,
    score_served,
)
from backend.settings import Settings
from integration.label_studio.label_config import Output, parse_label_config
from integration.regions.write import build_prediction
from model.instance import Instance
from tests.support.service import FakeWorkers
from training.datasets import Sample
from training.evaluation.coco_format import TruthBuilder, decode_masks

pytestmark = pytest.mark.service

Serve = Callable[[Settings], str]


class Squares:
    """A set whose truth is what the fake model finds: the middle half of every image."""

    class_names = ("gear", "leaf")

    def __init__(self, count: int = 3) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        height, width = 48, 64 + 8 * index
        mask = np.zeros((1, height, width), bool)
        mask[0, height // 4 : height - height // 4, width // 4 : width - width // 4] = True
        image = np.full((height, width, 3), 40 * index, np.uint8)
        return Sample(image, mask, np.zeros(1, np.int64), np.zeros(1, bool), index + 1)


def through(url: str, samples: Squares, settings: Settings | None = None) -> tuple[dict, Served]:
    api = ServedApiClient(url, settings or Settings(), patience_s=60)
    served = predict_set(api, samples, 0.25, "fake-1", int)  # type: ignore[arg-type]
    return score_served(served, None, threshold=0.25, ratio=0.02), served


def test_what_is_served_is_what_was_found(settings: Settings, workers: FakeWorkers, serve: Serve) -> None:
    workers.start()
    outcome, _ = through(serve(settings), Squares())
    assert outcome["served"]["mask"]["AP"] == pytest.approx(1)
    assert outcome["served"]["boundary"]["AP"] == pytest.approx(1)
    assert outcome["versions"] == {"fake-1": 3}
    assert (outcome["objects"], outcome["regions"], outcome["failed"]) == (3, 3, [])


def test_failed_tasks_are_told_by_reason(settings: Settings, workers: FakeWorkers, serve: Serve) -> None:
    workers.start(fake={"fail": 72})
    outcome, _ = through(serve(settings), Squares())
    (failure,) = outcome["failed"]
    assert failure["count"] == 1
    assert "does not like this width" in failure["reason"] or "fake model" in failure["reason"]
    assert outcome["served"]["mask"]["AP"] < 1
    assert "without detections" in outcome["notes"][0]


def test_deferred_answers_are_asked_for_again(settings: Settings, workers: FakeWorkers, serve: Serve) -> None:
    workers.start(fake={"seconds": 0.4}, max_batch=1)
    hasty = settings.model_copy(update={"predict_deadline_s": 0.1})
    outcome, _ = through(serve(hasty), Squares())
    assert outcome["deferred"] > 0
    assert outcome["served"]["mask"]["AP"] == pytest.approx(1)


def test_without_a_worker_patience_ends_with_the_fix(settings: Settings, serve: Serve) -> None:
    hasty = settings.model_copy(update={"predict_deadline_s": 0.05})
    api = ServedApiClient(serve(hasty), settings, patience_s=0.2)
    try:
        with pytest.raises(ServedError, match=r"0 of 1 have, 0 workers are alive.*start a worker"):
            api.predict([{"id": "a-0", "data": {"image": "data:,"}}], label_config(("gear",)))
    finally:
        api.close()


@pytest.mark.parametrize("given", ["basic_auth_user", "api_token"])
def test_authorisation(settings: Settings, workers: FakeWorkers, serve: Serve, given: str) -> None:
    workers.start()
    secret = type(settings.api_token)
    password, token = secret("secret"), secret("bear")
    basic = {"basic_auth_user": "me", "basic_auth_password": password}
    url = serve(settings.model_copy(update={**basic, "api_token": token}))
    ours = settings.model_copy(update=basic if given in basic else {"api_token": token})
    outcome, _ = through(url, Squares(1), ours)
    assert outcome["objects"] == 1
    with pytest.raises(ServedError, match="wants other credentials"):
        through(url, Squares(1), settings)


def test_another_version_is_refused(settings: Settings, serve: Serve) -> None:
    with pytest.raises(ServedError, match="serves fake-1, --weights is other-2"):
        predict_set(ServedApiClient(serve(settings), settings), Squares(1), 0.25, "other-2", int)  # type: ignore[arg-type]


def test_nobody_there_is_one_clear_sentence() -> None:
    for url, message in (("http://127.0.0.1:9", "does not answer"), ("127.0.0.1:9", "expected the address")):
        with pytest.raises(ServedError, match=message):
            through(url, Squares(1))


def test_a_hole_and_two_parts_survive_the_round_trip() -> None:
    """By hand: a 20 x 20 px frame with a 6 x 6 hole, and two 5 px squares that are one leaf."""
    frame, leaf = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    frame[5:25, 5:25], frame[12:18, 12:18] = True, False
    leaf[5:10, 40:45] = leaf[20:25, 40:45] = True
    config = parse_label_config(label_config(("gear", "leaf")))
    instances = [Instance((5, 5, 25, 25), "gear", 0.9, frame, 0.0), Instance((40, 5, 45, 25), "leaf", 0.8, leaf, 0.0)]
    exact = Output(tolerance_px=0.0)
    prediction, _ = build_prediction(instances, config, width=60, height=40, model_version="v", output=exact)
    assert len(prediction["result"]) == 2  # the frame with a cut, and the leaf's two parts joined by one
    objects = Served(TruthBuilder(("gear", "leaf")))
    objects.add(7, (40, 60), prediction)
    figures = [(result["image_id"], result["category_id"], result["score"]) for result in objects.results]
    assert figures == [(7, 1, 0.9), (7, 2, 0.8)]
    masks = decode_masks([result["segmentation"] for result in objects.results], (40, 60))
    assert masks[0].sum() == 400 - 36
    assert np.array_equal(masks, np.array([frame, leaf]))


def test_regions_that_are_no_objects_are_counted() -> None:
    objects = Served(TruthBuilder(("gear",)))
    region = {
        "id": "a",
        "type": "polygonlabels",
        "score": 0.9,
        "value": {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": ["cat"]},
    }
    objects.add(1, (10, 10), {"model_version": "v", "result": [region, {**region, "id": "b", "score": None}]})
    assert objects.results == []
    assert sum(objects.skipped.values()) == 2


def test_scores_are_chosen_as_the_api_chooses() -> None:
    raw = [{"score": score} for score in (0.2499999, 0.25, 0.3, 0.6)]
    assert len(detections_above(raw, 0.25)) == 3
    assert "SCORE_FLOOR" in notes([{"score": 0.6}], raw, 0.25)[0]
    assert notes([{"score": 0.25}], raw, 0.25) == []


def test_the_command_prints_one_object(settings: Settings, workers: FakeWorkers, serve: Serve, tmp_path: Path) -> None:
    from PIL import Image

    workers.start()
    url, samples = serve(settings), Squares(2)
    records: dict[str, list] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "gear"}]}
    for index in range(2):
        sample = samples[index]
        height, width = sample.image.shape[:2]
        Image.fromarray(sample.image).save(tmp_path / f"{index}.png")
        records["images"].append({"id": index, "file_name": f"{index}.png", "height": height, "width": width})
        box = [width // 4, height // 4, width // 2, height // 2]
        x, y, w, h = box
        records["annotations"].append(
            {
                "id": index + 1,
                "image_id": index,
                "category_id": 1,
                "bbox": box,
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
        )
    (tmp_path / "set.json").write_text(json.dumps(records))
    command = ["--served", url, "--coco", str(tmp_path / "set.json"), str(tmp_path)]
    result = CliRunner().invoke(evaluate, [*command, "--json"])
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout, parse_constant=pytest.fail)  # NaN is no JSON
    assert outcome["served"]["mask"]["AP"] == pytest.approx(1)
    assert "raw" not in outcome  # without weights
    assert "served" in CliRunner().invoke(evaluate, command).stdout
    assert CliRunner().invoke(evaluate, [*command, "--card"]).exit_code == 2
    assert CliRunner().invoke(evaluate, ["--scenes", "val"]).exit_code == 2
    failed_result = CliRunner().invoke(evaluate, ["--served", "http://127.0.0.1:9", *command[2:]])
    assert (failed_result.exit_code, "does not answer" in failed_result.output) == (1, True)
