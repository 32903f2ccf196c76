"""What a worker takes out of a real queue: whole batches, suspects alone, and nothing that nobody wants any more."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from redis import Redis

from backend.queue.job_queue import JobQueue, PredictionJob, Requester
from backend.queue.job_store import DONE, JobOutcome
from backend.queue.keys import DEFERRED, INTERACTIVE_NAME, PREDICT_LANE, REQUESTER, RUNNING, STATS, TASK, WORKERS
from backend.queue.recovery import Heartbeat, OrphanSearch
from backend.worker.main import Batcher
from tests.support.fake_label_studio import TOKEN
from tests.support.service import CONFIG, finish, predict_body, setup_body, states, tasks, wait_until

pytestmark = pytest.mark.service

NAME = "this-worker"


@pytest.fixture
def queue(settings, redis) -> JobQueue:
    return JobQueue(redis, settings)


@pytest.fixture
def taking(queue, settings, redis) -> Batcher:
    """Of a worker that gives signs of life."""
    vitals = Heartbeat(redis, NAME, lost_after_s=60)
    vitals.beat({})
    return Batcher(queue, vitals, settings.model_copy(update={"max_batch": 3}))


def jobs(count: int, *, start: int = 1) -> list[PredictionJob]:
    return [
        PredictionJob("7.1", {"id": number, "data": {"image": f"{number}.png"}}, f"{number}.png", CONFIG, "v1")
        for number in range(start, start + count)
    ]


def numbers(batch: Any) -> list[int]:
    return [job.task["id"] for job in batch.jobs.values()] if batch else []


def test_batches_come_in_order_with_all_that_a_worker_needs(queue, taking, redis):
    waiting_jobs = jobs(5)
    queue.submit(waiting_jobs)
    begun = taking.first()
    assert list(begun.jobs.values()) == waiting_jobs[:3]
    assert numbers(taking.next()) == [4, 5]
    assert taking.next() is None
    assert redis.smembers(RUNNING + NAME) == {job.id.encode() for job in waiting_jobs}
    assert states(queue, [job.id for job in waiting_jobs]) == ["running"] * 5


def test_an_interactive_worker_has_the_interactive_tasks_for_itself(queue, taking, settings, redis):
    vitals = Heartbeat(redis, f"{INTERACTIVE_NAME}here", lost_after_s=60)
    vitals.beat({})
    prompts = Batcher(queue, vitals, settings, is_interactive=True)
    queue.submit(jobs(5))
    queue.submit(jobs(2, start=8), interactive=True)
    assert numbers(taking.first()) == [1, 2, 3]
    assert taking.urgent() is None
    assert [numbers(prompts.first()), numbers(prompts.urgent())] == [[8], [9]]
    assert [prompts.next(), prompts.ahead()] == [None, None]
    assert numbers(taking.ahead()) == [4, 5], "nothing is left for a worker that would not take it"
    queue.submit(jobs(1, start=10), interactive=True)
    vitals.leave()
    assert numbers(taking.first()) == [10], "without one the others answer"


def test_interactive_tasks_stay_alone(queue, taking):
    queue.submit(jobs(2))
    queue.submit(jobs(2, start=8), interactive=True)
    assert numbers(taking.first()) == [8]
    assert numbers(taking.urgent()) == [9]
    assert taking.urgent() is None


def test_what_was_there_when_a_worker_died_runs_alone(queue, taking, redis):
    """The killer of a batch is found by running each of its tasks with nothing beside it."""
    waiting_jobs = jobs(4)
    queue.submit(waiting_jobs[1:2])
    redis.sadd(WORKERS, "dead")
    assert numbers(Batcher(queue, Heartbeat(redis, "dead", lost_after_s=60), taking.limits).next()) == [2]
    assert OrphanSearch(queue).run() == [waiting_jobs[1].id]
    queue.submit(waiting_jobs)
    redis.lpop(PREDICT_LANE)
    redis.linsert(PREDICT_LANE, "AFTER", waiting_jobs[0].id, waiting_jobs[1].id)
    begun = taking.first()
    assert (numbers(begun), begun.is_alone) == ([1], False)
    assert taking.ahead() is None, "a suspect is not even prepared beside another batch"
    suspect = taking.next()
    assert (numbers(suspect), suspect.is_alone) == ([2], True)
    assert numbers(taking.next()) == [3, 4]


@pytest.mark.parametrize(("others", "ahead"), [(0, [4, 5, 6]), (1, [4]), (2, [])])
def test_nothing_is_taken_ahead_that_another_worker_could_run_now(queue, taking, redis, others, ahead):
    for number in range(others):
        Heartbeat(redis, f"other-{number}", lost_after_s=60).beat({})
    queue.submit(jobs(7))
    assert numbers(taking.first()) == [1, 2, 3]
    assert numbers(taking.ahead()) == ahead


def test_what_has_ended_or_is_forgotten_is_left_out(queue, taking, redis):
    waiting_jobs = jobs(3)
    queue.submit(waiting_jobs)
    finish(queue, waiting_jobs[0].id, JobOutcome(prediction={"result": []}))
    redis.delete(TASK + waiting_jobs[2].id)
    assert numbers(taking.first()) == [2]
    assert states(queue, [waiting_jobs[0].id]) == [DONE]


@pytest.mark.parametrize(
    ("leaves", "deferred", "second_requester", "is_taken"),
    [
        pytest.param(False, False, False, True, id="somebody waits"),
        pytest.param(True, False, False, False, id="nobody waits"),
        pytest.param(True, True, False, True, id="nobody waits, but it will be pushed"),
        pytest.param(True, False, True, True, id="one of two has left"),
    ],
)
def test_abandoned_work_is_dropped(queue, taking, redis, leaves, deferred, second_requester, is_taken):
    waiting_jobs, requester = jobs(1), Requester()
    queue.submit(waiting_jobs, requester=requester)
    if second_requester:
        queue.submit(waiting_jobs, requester=Requester())
    if deferred:
        redis.hset(DEFERRED, waiting_jobs[0].id, json.dumps({"project": "7.1", "task": 1}))
    if leaves:
        queue.leave(requester)
    assert numbers(taking.first()) == ([1] if is_taken else [])
    assert int(redis.hget(STATS, "tasks_dropped") or 0) == (0 if is_taken else 1)
    # Whoever asks again finds nothing in the way.
    assert bool(states(queue, [waiting_jobs[0].id])[0]) == is_taken
    queue.submit(waiting_jobs)
    assert queue.depth()["predict"] == (0 if is_taken else 1)


def test_work_without_asker_is_never_dropped(queue, taking):
    """An operator's retry, and predictions after a promotion."""
    queue.submit(jobs(1))
    assert numbers(taking.first()) == [1]


def hang_up_while_waiting(address: str, body: dict[str, Any], seen: Callable[[], object]) -> None:
    """A client that sends /predict and goes away once `seen`."""
    parts = urlsplit(address)
    data = json.dumps(body).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as client:
        client.sendall(head.encode() + data)
        wait_until(seen)


def leases(redis: Redis) -> list[bytes]:
    return list(redis.scan_iter(REQUESTER + "*"))


@pytest.mark.parametrize("context", [{"result": []}, None])
def test_a_client_that_went_away_costs_no_compute_time(settings, serve, queue, taking, redis, context):
    address = serve(settings)
    hang_up_while_waiting(address, predict_body(tasks(1), context=context), lambda: leases(redis))
    wait_until(lambda: not leases(redis))
    assert queue.depth() == {"interactive": int(context is not None), "predict": int(context is None)}
    assert taking.first() is None
    assert queue.depth() == {"interactive": 0, "predict": 0}
    assert redis.hget(STATS, "tasks_dropped") == b"1"


def test_an_interactive_request_that_was_given_up_costs_no_compute_time(settings, serve, taking, redis):
    address = serve(settings.model_copy(update={"interactive_deadline_s": 0.2}))
    answer = requests.post(f"{address}/predict", json=predict_body(tasks(1), context={"result": []}), timeout=60)
    assert answer.status_code == 504
    assert taking.first() is None


def test_label_studio_that_hung_up_gets_its_predictions_pushed(settings, serve, taking, redis, label_studio):
    address = serve(settings)
    requests.post(f"{address}/setup", json=setup_body(label_studio.url, TOKEN), timeout=60)
    hang_up_while_waiting(address, predict_body(tasks(2), project="7.1795339022"), lambda: leases(redis))
    wait_until(lambda: redis.hlen(DEFERRED) == 2)
    wait_until(lambda: not leases(redis))
    assert numbers(taking.first()) == [1, 2]
