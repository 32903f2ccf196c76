"""Interactive requests to the service: what reaches the worker, what is remembered, what an annotator is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from redis import Redis

from backend.errors import TaskError
from backend.predictions.projects import PredictRequest
from backend.predictions.prompts import MOST_BYTES, PromptMemory
from backend.predictions.service import Predictions
from backend.queue.job_queue import PredictionJob
from backend.queue.job_store import JobOutcome
from backend.settings import SHIPPED_PROMPT_MODEL, Settings
from backend.versions.resolve import read_served_model
from tests.support.service import predict_body, tasks

pytestmark = pytest.mark.service

PROJECT = "7.1795339022"
BOX = {"id": "b", "value": {"x": 10, "y": 20, "width": 30, "height": 40, "rectanglelabels": ["leaf"]}}
WRONG = {"id": "k", "is_positive": False, "value": {"x": 39, "y": 59, "width": 1, "keypointlabels": ["leaf"]}}


class Asker:
    """A service whose worker answers at once with region "answer"; `jobs` are what it was given."""

    def __init__(self, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = settings.model_copy(update={"prompt_model": SHIPPED_PROMPT_MODEL})
        self.redis = redis
        self.jobs: list[PredictionJob] = []
        monkeypatch.setattr("backend.queue.job_queue.JobQueue.ask", self._answer)

    def _answer(self, jobs: Sequence[PredictionJob], **_: Any) -> dict[str, JobOutcome]:
        self.jobs += jobs
        prediction = {"result": [{"id": "answer"}], "score": 0.5, "model_version": jobs[0].model_version}
        return {job.id: JobOutcome(prediction=prediction) for job in jobs}

    def ask(self, *regions: dict[str, Any], project: str = PROJECT, **task: Any) -> dict[str, Any]:
        body = predict_body([{**tasks(1)[0], **task}], project=project, context={"result": list(regions)})
        request = PredictRequest.model_validate(body)
        # Another process may get the next request, so each has a service of its own.
        service = Predictions(self.redis, self.settings)
        return service.answer(request, read_served_model(self.settings.model), "request")


@pytest.fixture
def asker(redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Asker:
    return Asker(redis, settings, monkeypatch)


def test_a_click_is_about_the_box_before(asker: Asker) -> None:
    asker.ask(BOX)
    assert asker.ask(WRONG)["results"][0]["result"] == [{"id": "answer"}]
    prompts = [job.prompt for job in asker.jobs]
    assert all(prompt and prompt["box_pct"] == [10, 20, 40, 60] for prompt in prompts)
    assert [len(prompt["points_pct"]) for prompt in prompts if prompt] == [0, 1]
    assert len({job.id for job in asker.jobs}) == 2
    assert {job.model_version for job in asker.jobs} == {read_served_model(SHIPPED_PROMPT_MODEL).version}


@pytest.mark.parametrize(
    ("project", "task"), [("8.1", {}), (PROJECT, {"id": 2}), ("", {})], ids=["project", "task", "no project"]
)
def test_a_negative_click_elsewhere_says_what_to_do(asker: Asker, project: str, task: dict[str, Any]) -> None:
    asker.ask(BOX, project=project and PROJECT)
    with pytest.raises(TaskError, match="draw a box around it or click into it"):
        asker.ask(WRONG, project=project, **task)


def test_a_saved_outline_is_not_changed_by_a_new_click(asker: Asker) -> None:
    asker.ask(BOX)
    inside = {**WRONG, "is_positive": True}
    asker.ask(inside, drafts=[{"result": [{"id": "answer"}]}], annotations=[{"result": None}, "x"])
    assert asker.jobs[-1].prompt
    assert asker.jobs[-1].prompt["box_pct"] is None


def test_clicks_that_are_taken_back_leave_nothing(asker: Asker) -> None:
    asker.ask({**WRONG, "is_positive": True})
    assert asker.ask()["results"][0]["result"] == []
    assert len(asker.jobs) == 1


def test_a_label_that_cannot_be_drawn_is_named(asker: Asker) -> None:
    with pytest.raises(TaskError, match="'whale'"):
        asker.ask({**BOX, "value": {**BOX["value"], "rectanglelabels": ["whale"]}})  # type: ignore[dict-item]


def test_what_would_fill_the_queue_server_is_not_remembered(redis: Redis, settings: Settings) -> None:
    memory = PromptMemory(redis)
    base: Any = {"box_pct": None, "points_pct": [], "drawing": None, "label": "leaf", "region": ""}
    memory.save(PROJECT, 1, {"base": base, "clicks": [(1.0, 2.0, True)], "answer_ids": []})
    assert memory.get(PROJECT, 1)
    stroke = {"value": {"rle": [0] * MOST_BYTES}}
    memory.save(PROJECT, 1, {"base": {**base, "drawing": stroke}, "clicks": [], "answer_ids": []})
    assert memory.get(PROJECT, 1) is None, "what was asked before is no more what was asked last"
