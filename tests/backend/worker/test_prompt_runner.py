"""The promptable model that ships, from an interactive job to one region with the annotator's label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backend.queue.job_queue import PredictionJob
from backend.settings import Settings
from backend.worker.model_cache import PredictedImage
from backend.worker.prompt_runner import KEPT_ANSWERS, PromptRunner
from backend.worker.task_runner import prediction_of

CONFIG = """<View><Image name="image" value="$image"/><{tag} name="shape" toName="image">
<Label value="leaf"/><Label value="balloon"/></{tag}></View>"""


@pytest.fixture(scope="module")
def runner() -> PromptRunner:
    return PromptRunner(Settings(device="cpu"))


def disc() -> np.ndarray:
    y, x = np.ogrid[:120, :160]
    image = np.full((120, 160, 3), (60, 110, 60), np.uint8)
    image[(x - 80) ** 2 + (y - 60) ** 2 < 35**2] = (220, 40, 40)
    return image


@pytest.mark.parametrize("tag", ["PolygonLabels", "BrushLabels", "RectangleLabels"])
def test_a_box_becomes_one_region_with_the_annotators_label(runner: PromptRunner, tag: str) -> None:
    prompt = {"box_pct": [26, 18, 74, 82], "points_pct": [], "drawing": None, "label": "balloon", "region": "r"}
    version = runner._load(runner.settings).version
    job = PredictionJob("7", {"id": 1}, "a.png", CONFIG.format(tag=tag), version, prompt=prompt)
    instance = runner.answer(job, disc())
    truth = (disc()[..., 0] == 220) & True
    assert (instance.mask_hw & truth).sum() / (instance.mask_hw | truth).sum() > 0.8
    prediction = prediction_of(job, PredictedImage([instance], precision=runner.precision), 120, 160, None)
    (region,) = prediction["result"]
    assert region["value"][tag.lower()] == ["balloon"]
    assert 0 <= region["score"] <= 1
    assert prediction["precision"] == runner._load(runner.settings).precision


def test_images_are_remembered(runner: PromptRunner) -> None:
    job = PredictionJob("7", {"id": 1}, "a.png", "", "v")
    assert runner.remembered(job) is None
    runner.remember(job, disc())
    assert runner.remembered(job) is not None


def test_the_last_answers_are_remembered_for_the_next_click(runner: PromptRunner) -> None:
    fields = {"box_pct": [26, 18, 74, 82], "points_pct": [], "drawing": None, "label": "leaf", "region": "r"}
    version, image = runner._load(runner.settings).version, disc()
    jobs = [PredictionJob("7", {"id": 1}, f"{number}.png", "", version, prompt=fields) for number in range(12)]
    for job in jobs:
        runner.answer(job, image)
    prompted = runner._prompted["7", "11.png"]
    assert len(runner._prompted) == KEPT_ANSWERS
    runner.answer(replace(jobs[11], prompt={**fields, "points_pct": [[50, 50, True]]}), image)
    assert runner._prompted["7", "11.png"] is prompted
    runner.answer(jobs[11], disc())
    assert runner._prompted["7", "11.png"] is not prompted, "another image"
