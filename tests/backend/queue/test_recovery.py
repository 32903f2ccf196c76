"""Nothing is lost when parts die: real processes, really killed."""

from __future__ import annotations

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from redis import Redis

from backend.processes.embedded_redis import EmbeddedRedis
from backend.queue.recovery import living_workers
from backend.settings import Settings
from backend.worker.main import run_worker  # noqa: F401  (what the killed processes run)
from tests.support.fake_label_studio import TOKEN
from tests.support.service import data_uri, predict_body, setup_body, tasks, wait_until

pytestmark = pytest.mark.service


def ask(address: str, body: dict) -> dict:
    return requests.post(f"{address}/predict", json=body, timeout=100).json()


def in_state(address: str, state: str) -> list[dict]:
    return requests.get(f"{address}/jobs?state={state}", timeout=20).json()["jobs"]


@pytest.fixture(autouse=True)
def no_worker_at_first(worker_pool, settings):
    """Most tests ask first: a worker kept from the test before could take a task and be killed before it notes it."""
    worker_pool.end()


def test_a_killed_worker_s_batch_is_done_by_another(settings, serve, workers):
    address = serve(settings)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, address, predict_body(tasks(4)))
        first = workers.start(max_batch=4, fake={"seconds": 5})[0]
        wait_until(lambda: in_state(address, "running"))
        first.kill()
        first.wait()
        workers.start(max_batch=4)
        body = answer.result()
    assert len(body["results"]) == 4
    assert "errors" not in body
    assert {row["attempts"] for row in in_state(address, "done")} == {"2"}


def test_a_task_that_kills_its_worker_twice_is_parked_and_the_others_are_done(settings, serve, workers):
    workers.end()
    address = serve(settings)
    killer = {"id": 9, "data": {"image": data_uri(24)}}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, address, predict_body([*tasks(2), killer]))
        wait_until(lambda: len(in_state(address, "queued")) == 3)
        for attempt in range(2):
            dead = workers.add(max_batch=4, fake={"crash": 24})[-1]
            assert dead.wait(timeout=100) == 13, f"attempt {attempt}"
        workers.add(max_batch=4, fake={"crash": 24})
        body = answer.result()
    assert [bool(item) for item in body["results"]] == [True, True, False]
    parked_jobs = in_state(address, "parked")
    assert [row["task"] for row in parked_jobs] == ["9"]
    assert "2 attempts" in body["errors"][0]["error"]
    assert "retry" in body["errors"][0]["hint"]
    # Asked again it is not run again, until somebody says so.
    assert ask(address, predict_body([killer]))["results"] == [[]]
    workers.start(max_batch=4)
    assert requests.post(f"{address}/jobs/{parked_jobs[0]['job']}/retry", timeout=20).status_code == 200
    wait_until(lambda: len(in_state(address, "done")) == 3)


def test_sigterm_finishes_the_batch_at_hand_and_leaves_the_rest(settings, serve, workers):
    address = serve(settings)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, address, predict_body(tasks(12)))
        first = workers.start(max_batch=2, fake={"seconds": 1.0})[0]
        wait_until(lambda: in_state(address, "running"))
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=60) == 0
        assert in_state(address, "running") == []
        assert len(in_state(address, "queued")) >= 2
        with Redis.from_url(settings.redis_url) as connection:
            assert living_workers(connection) == {}, "it said goodbye"
        workers.start(max_batch=2)
        assert len(answer.result()["results"]) == 12
    assert {row["attempts"] for row in in_state(address, "done")} == {"1"}


def test_a_queue_server_that_forgets_everything_costs_no_task(settings, serve, workers, redis):
    address = serve(settings)
    workers.end()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, address, predict_body(tasks(3)))
        wait_until(lambda: len(in_state(address, "queued")) == 3)
        redis.flushall()
        wait_until(lambda: len(in_state(address, "queued")) == 3)
        workers.start()
        assert len(answer.result()["results"]) == 3


def test_a_queue_server_that_restarts_costs_no_task(checkpoint, serve, workers, tmp_path):
    """With a worker waiting on it and a request in flight."""
    server = EmbeddedRedis()

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(server.command, stdin=subprocess.PIPE)
        assert process.stdin
        with process.stdin as stdin:
            stdin.write(server.configuration)
        wait_until(server.ready)
        return process

    process = start()
    settings = Settings(redis_url=server.url, model=checkpoint, score_threshold=0.0)
    try:
        address = serve(settings)
        worker = workers.add(redis_url=server.url)[-1]
        with Redis.from_url(server.url) as connection:
            wait_until(lambda: living_workers(connection))
            process.kill()
            process.wait()
            health = requests.get(f"{address}/health", timeout=5)
            assert health.json()["status"] == "UP"
            answer = requests.post(f"{address}/predict", json=predict_body(tasks(1)), timeout=20)
            assert answer.status_code == 503
            assert "queue server" in answer.json()["error"]
            process = start()
            wait_until(lambda: living_workers(connection))
            connection.set("kept", "1")
            process.kill()
            process.wait()
            process = start()
            assert connection.get("kept") == b"1", "what was answered as deferred is still known"
        assert len(ask(address, predict_body(tasks(2)))["results"]) == 2
        assert worker.poll() is None
    finally:
        workers.end()
        process.kill()
        process.wait()


def test_the_api_answers_waiting_label_studio_before_it_stops(settings, serve, workers, label_studio):
    """The application is told that it is ending; what was waited for is pushed later."""
    workers.end()
    from backend.api.app import create_app

    app = create_app(settings)
    service = app.extensions["transfiner"]
    client = app.test_client()
    client.post("/setup", json=setup_body(label_studio.url, TOKEN))
    service.queue.is_stopping = True
    answer = client.post("/predict", json=predict_body(tasks(2), project="7.1795339022"))
    assert answer.get_json() == {"results": []}
    assert client.get("/jobs").get_json()["deferred"] == 2
