"""Late predictions are pushed into Label Studio: once, in chunks, whatever goes wrong meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from backend.predictions.projects import Project
from backend.queue.delivery import DeliveryClaims
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.job_store import JobOutcome
from backend.queue.keys import CLAIM, PUSH_LOCK, TASK
from backend.worker.maintenance import Pusher
from tests.support.fake_label_studio import TOKEN, FakeLabelStudio
from tests.support.service import CONFIG, finish, predict_body, setup_body, tasks, wait_until

pytestmark = pytest.mark.service

PROJECT = "7.1795339022"


@pytest.fixture
def late(settings, serve, workers, label_studio) -> str:
    """Address of an API with a deadline that nothing can meet, for a project of the fake Label Studio."""
    workers.end()
    address = serve(settings.model_copy(update={"predict_deadline_s": 0.1}))
    body = setup_body(label_studio.url, TOKEN)
    assert requests.post(f"{address}/setup", json=body, timeout=20).json()["model_version"] == "fake-1"
    return address


def ask(address: str, count: int, start: int = 1) -> dict:
    body = predict_body(tasks(count, start=start), project=PROJECT)
    return requests.post(f"{address}/predict", json=body, timeout=100).json()


def pushed_tasks(label_studio: FakeLabelStudio) -> list[int]:
    return sorted(row["task"] for row in label_studio.predictions)


def states(address: str) -> set[tuple[str, str]]:
    rows = requests.get(f"{address}/jobs", timeout=20).json()["jobs"]
    return {(row["state"], row.get("delivery", "")) for row in rows}


def test_late_predictions_arrive_once_in_chunks(late, workers, label_studio):
    assert ask(late, 25) == {"results": []}
    assert states(late) == {("queued", "deferred")}
    workers.start(push_chunk=10, fake={"seconds": 0.01})
    wait_until(lambda: len(label_studio.predictions) >= 25)
    wait_until(lambda: states(late) == {("done", "pushed")})
    assert pushed_tasks(label_studio) == list(range(1, 26))
    assert max(label_studio.pushes) <= 10
    first = label_studio.predictions[0]
    assert first["project"] == 7
    assert first["model_version"] == "fake-1"
    assert first["result"][0]["value"]["polygonlabels"] == ["gear"]
    assert set(first) == {"id", "project", "task", "model_version", "score", "result"}


def test_asking_again_and_again_computes_and_stores_once(late, workers, label_studio, redis):
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: ask(late, 12), range(10)))
    assert answers == [{"results": []}] * 10
    workers.start(fake={"seconds": 0.01})
    wait_until(lambda: len(label_studio.predictions) >= 12)
    wait_until(lambda: states(late) == {("done", "pushed")})
    assert pushed_tasks(label_studio) == list(range(1, 13))
    assert int(redis.get("fake:images")) == 12


def test_a_second_request_answers_what_was_deferred(settings, serve, late, workers, label_studio, redis):
    """It answers itself when it can, and then nothing is pushed."""
    workers.end()
    assert ask(late, 3) == {"results": []}
    patient = serve(settings)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, patient, 3)
        wait_until(lambda: len(redis.keys(f"{CLAIM}*")) == 3)
        workers.start(fake={"seconds": 0.01})
        assert len(answer.result()["results"]) == 3
    assert states(late) == {("done", "answered")}
    time.sleep(1.0)
    assert label_studio.predictions == []


def test_failed_tasks_are_not_pushed(late, workers, label_studio):
    body = predict_body([*tasks(2), *tasks(1, start=3, image="data:image/jpeg;base64,AAAA")], project=PROJECT)
    assert requests.post(f"{late}/predict", json=body, timeout=100).json() == {"results": []}
    workers.start(fake={"seconds": 0.01})
    wait_until(lambda: ("failed", "deferred") in states(late) and len(label_studio.predictions) >= 2)
    wait_until(lambda: requests.get(f"{late}/jobs", timeout=20).json()["deferred"] == 0)
    assert pushed_tasks(label_studio) == [1, 2]


@pytest.mark.parametrize(
    "failures",
    [
        pytest.param([503], id="not stored, server error"),
        pytest.param([401], id="refused for a moment"),
        pytest.param([0], id="stored, but the answer was an error"),
        pytest.param([503, 0, 503], id="both"),
    ],
)
def test_a_failed_push_is_repeated_without_duplicates(late, workers, label_studio, failures):
    label_studio.failures = list(failures)
    ask(late, 4)
    workers.start(push_retry_s=0.1, fake={"seconds": 0.01})
    wait_until(lambda: states(late) == {("done", "pushed")})
    assert pushed_tasks(label_studio) == [1, 2, 3, 4]


def test_a_refused_row_does_not_hold_up_the_others(late, workers, label_studio):
    label_studio.unknown_tasks = {2}
    ask(late, 3)
    workers.start(push_retry_s=0.1, fake={"seconds": 0.01})
    wait_until(lambda: requests.get(f"{late}/jobs", timeout=20).json()["deferred"] == 0)
    assert pushed_tasks(label_studio) == [1, 3]


def test_label_studio_down_while_pushing_loses_nothing(settings, late, workers, label_studio):
    ask(late, 3)
    label_studio.failures = [502] * 3
    first = workers.start(push_retry_s=0.1, fake={"seconds": 0.01})[0]
    wait_until(lambda: len(label_studio.failures) < 3)
    first.kill()
    first.wait()
    workers.start(push_retry_s=0.1, fake={"seconds": 0.01})
    wait_until(lambda: states(late) == {("done", "pushed")})
    assert pushed_tasks(label_studio) == [1, 2, 3]


def test_what_waits_for_label_studio_outlives_its_time(late, workers, label_studio, redis):
    label_studio.failures = [502]
    ask(late, 2)
    workers.start(push_retry_s=60, result_ttl_s=10, fake={"seconds": 0.01})
    wait_until(lambda: label_studio.failures == [])
    keys = redis.keys(f"{TASK}*")
    assert [redis.ttl(key) for key in keys] == [-1, -1], "kept until it is pushed"


@pytest.mark.parametrize("odd", ["7a.1", "project", "-.1"])
def test_a_project_without_a_number_is_no_label_studio(settings, serve, label_studio, workers, odd):
    workers.end()
    address = serve(settings.model_copy(update={"predict_deadline_s": 0.1}))
    requests.post(f"{address}/setup", json=setup_body(label_studio.url, TOKEN, project=odd), timeout=20)
    body = predict_body(tasks(1), project=odd)
    assert requests.post(f"{address}/predict", json=body, timeout=20).json() == {"results": []}
    assert requests.get(f"{address}/jobs", timeout=20).json()["deferred"] == 0


def test_a_client_without_setup_gets_its_results_when_it_asks_again(settings, serve, workers):
    """There is no Label Studio to push to."""
    workers.end()
    address = serve(settings.model_copy(update={"predict_deadline_s": 0.1}))
    body = predict_body(tasks(2))
    assert requests.post(f"{address}/predict", json=body, timeout=20).json() == {"results": []}
    assert requests.get(f"{address}/jobs", timeout=20).json()["deferred"] == 0
    workers.start(fake={"seconds": 0.01})
    wait_until(lambda: len(requests.post(f"{address}/predict", json=body, timeout=20).json()["results"]) == 2)


class FrozenClient:
    """A Label Studio that stores; the process stands still right before or after the import."""

    def __init__(self, freeze_before: Callable[[], None], freeze_after: Callable[[], None]) -> None:
        self.stored: list[dict[str, Any]] = []
        self.freeze_before, self.freeze_after = freeze_before, freeze_after

    def import_predictions(self, project_id: int, rows: Sequence[Mapping[str, Any]], *, chunk: int = 200) -> int:
        self.freeze_before()
        self.stored += [{"id": len(self.stored) + 1 + n, **row} for n, row in enumerate(rows)]
        self.freeze_after()
        return len(rows)

    def list_predictions(self, *, task_id: int | None = None) -> list[dict[str, Any]]:
        return [row for row in self.stored if row["task"] == task_id]

    def delete_prediction(self, prediction_id: int) -> None:
        self.stored = [row for row in self.stored if row["id"] != prediction_id]


def test_the_lock_of_a_dead_worker_is_ended_however_long_it_lasts(settings, redis):
    queue, deliveries = JobQueue(redis, settings), DeliveryClaims(redis)
    job = PredictionJob(PROJECT, {"id": 1, "data": {}}, "1", CONFIG, "v1")
    queue.submit([job])
    finish(queue, job.id, JobOutcome(prediction={"result": [], "score": 1.0, "model_version": "v1"}))
    deliveries.defer(deliveries.claim("request", [job.id], lifetime_s=60), {job.id: {"project": PROJECT, "task": 1}})
    redis.set(PUSH_LOCK + PROJECT, "dead", px=7_200_000)
    client = FrozenClient(lambda: None, lambda: None)
    pusher = Pusher(queue, settings, "living", connect=lambda *_: client)
    wait_until(lambda: pusher.push_ready() or client.stored, give_up_s=30)
    assert [row["task"] for row in client.stored] == [1]


@pytest.mark.parametrize("frozen", ["before the check", "before the import", "after the import"])
def test_a_worker_frozen_while_it_pushes_stores_nothing_twice(settings, redis, frozen):
    """It is taken over while it stands still, and then goes on."""
    queue, deliveries, count = JobQueue(redis, settings), DeliveryClaims(redis), 20
    jobs = [PredictionJob(PROJECT, {"id": n, "data": {}}, f"{n}", CONFIG, "v1") for n in range(1, count + 1)]
    queue.submit(jobs)
    for job in jobs:
        prediction = {"result": [{"id": f"r{job.task['id']}"}], "score": 1.0, "model_version": "v1"}
        finish(queue, job.id, JobOutcome(prediction=prediction))
    claim = deliveries.claim("request", [job.id for job in jobs], lifetime_s=60)
    assert deliveries.defer(claim, {job.id: {"project": PROJECT, "task": job.task["id"]} for job in jobs}) == []

    def take_over() -> None:
        """The lock has expired meanwhile, and another worker pushes."""
        client.freeze_before = client.freeze_after = lambda: None
        redis.delete(PUSH_LOCK + PROJECT)
        second.push_ready()

    def go_on() -> None:
        pass

    client = FrozenClient(
        take_over if frozen == "before the import" else go_on, take_over if frozen == "after the import" else go_on
    )
    first = Pusher(queue, settings, "first", connect=lambda *_: client)
    second = Pusher(queue, settings, "second", connect=lambda *_: client)
    if frozen == "before the check":
        client_of = first._client

        def late_client(project: Project):
            take_over()
            return client_of(project)

        first._client = late_client  # type: ignore[method-assign]
    first.push_ready()
    second.push_ready()
    assert sorted(row["task"] for row in client.stored) == list(range(1, count + 1))
    assert deliveries.count_deferred() == 0
