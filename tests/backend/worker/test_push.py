"""Late predictions are pushed into Label Studio: once, in chunks, whatever goes wrong meanwhile."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support.fake_label_studio import TOKEN, FakeLabelStudio
from tests.support.service import predict_body, setup_body, tasks, wait_until

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
    assert set(first) == {"project", "task", "model_version", "score", "result"}


def test_asking_again_and_again_computes_and_stores_once(late, workers, label_studio, redis):
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: ask(late, 12), range(10)))
    assert answers == [{"results": []}] * 10
    workers.start(fake={"seconds": 0.01})
    wait_until(lambda: len(label_studio.predictions) >= 12)
    wait_until(lambda: states(late) == {("done", "pushed")})
    assert pushed_tasks(label_studio) == list(range(1, 13))
    assert int(redis.get("fake:images")) == 12


def test_a_second_request_takes_back_what_was_deferred(settings, serve, late, workers, label_studio):
    """It answers itself when it can, and then nothing is pushed."""
    workers.end()
    assert ask(late, 3) == {"results": []}
    patient = serve(settings)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, patient, 3)
        wait_until(lambda: not requests.get(f"{late}/jobs", timeout=20).json()["deferred"])
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
    keys = redis.keys("transfiner:task:*")
    wait_until(lambda: all(redis.ttl(key) > 3600 for key in keys))


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
