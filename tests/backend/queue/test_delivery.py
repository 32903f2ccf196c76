"""What is answered "deferred" has somebody who delivers it, whatever the queue server forgot meanwhile."""

from __future__ import annotations

import time

import pytest

from backend.api.app import create_app
from backend.queue import keys
from backend.queue.delivery import DeliveryClaims
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.job_store import JobOutcome
from backend.queue.recovery import Heartbeat, OrphanSearch, absolve
from backend.worker.main import Batcher
from backend.worker.maintenance import Pusher
from tests.support.fake_label_studio import TOKEN
from tests.support.service import CONFIG, finish, predict_body, setup_body, states, tasks

PROJECT = "7.1795339022"
FACTS = {"project": PROJECT, "task": 1}


@pytest.fixture
def queue(settings, redis) -> JobQueue:
    return JobQueue(redis, settings)


@pytest.fixture
def job(queue) -> str:
    job = PredictionJob(PROJECT, {"id": 1, "data": {"image": "1.png"}}, "1.png", CONFIG, "v1")
    queue.submit([job])
    return job.id


@pytest.fixture
def deliveries(redis) -> DeliveryClaims:
    return DeliveryClaims(redis)


def test_an_expired_claim_is_deferred_all_the_same(deliveries, redis, job):
    """A clock that steps forward ends all lifetimes at once."""
    claim = deliveries.claim("request", [job], lifetime_s=60)
    redis.delete(keys.CLAIM + job)
    assert deliveries.defer(claim, {job: FACTS}) == []
    assert list(deliveries.deferred_of([job, "other"])) == [job]


@pytest.mark.parametrize("by", ["an answer", "an answer whose confirmation was lost", "a push"])
def test_what_was_delivered_while_a_request_waited_is_not_deferred(deliveries, job, by):
    claim = deliveries.claim("request", [job, "other"], lifetime_s=60)
    other = deliveries.claim("second", [job], lifetime_s=60)
    if by == "a push":
        assert deliveries.defer(other, {job: FACTS}) == []
        assert deliveries.take([job], 1) == [job]
        deliveries.pushed([job], keep_s=60)
    else:
        assert deliveries.release_if_all_held(other, [job])
    if "lost" in by:
        assert deliveries.release_if_all_held(other, [job]), "the caller repeats a command whose answer was lost"
    assert deliveries.defer(claim, {job: FACTS}) == []
    assert deliveries.count_deferred() == 0


@pytest.mark.parametrize("holder", ["answers", "dies"])
def test_what_another_request_claims_is_pushed_when_that_one_dies(deliveries, redis, job, holder):
    """Its API process was killed, or the queue server was away when it wanted to give its claims up."""
    other = deliveries.claim("dying", [job], lifetime_s=60)
    claim = deliveries.claim("request", [job, "other"], lifetime_s=60)
    assert deliveries.defer(claim, {job: FACTS}) == []
    assert deliveries.take([job], 1) == [], "somebody may still answer"
    if holder == "answers":
        assert deliveries.release_if_all_held(other, [job])
    redis.delete(keys.CLAIM + job)
    assert deliveries.take([job], 1) == ([job] if holder == "dies" else [])


def test_a_claim_that_the_queue_server_keeps_too_long_ends(deliveries, redis, job, monkeypatch):
    """Its clock was set back, and the request died."""
    deliveries.defer(deliveries.claim("request", [job], lifetime_s=60), {job: FACTS})
    deliveries.claim("dying", [job], lifetime_s=60)
    deliveries.end_overdue_claims([job])
    redis.pexpire(keys.CLAIM + job, 7_200_000)
    assert deliveries.take([job], 1) == []
    true_time = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: true_time() + 61)
    deliveries.end_overdue_claims([job])
    assert deliveries.take([job], 1) == [job]


def test_a_deferred_task_that_a_dying_request_claims_stays_deferred(queue, deliveries, redis, job):
    deliveries.defer(deliveries.claim("request", [job], lifetime_s=60), {job: FACTS})
    deliveries.claim("dying", [job], lifetime_s=60)
    finish(queue, job, JobOutcome(prediction={"result": []}))
    assert redis.ttl(keys.TASK + job) == -1
    redis.delete(keys.CLAIM + job)
    assert deliveries.take([job], 1) == [job]


def test_a_deferred_task_that_is_answered_gets_its_lifetime_back(deliveries, redis, job):
    deliveries.defer(deliveries.claim("request", [job], lifetime_s=60), {job: FACTS})
    again = deliveries.claim("again", [job], lifetime_s=60)
    assert deliveries.release_if_all_held(again, [job], keep_s=50)
    assert 0 < redis.ttl(keys.TASK + job) <= 50
    assert deliveries.count_deferred() == 0


def test_what_the_queue_server_does_not_know_is_said(deliveries, redis, job):
    claim = deliveries.claim("request", [job], lifetime_s=60)
    redis.flushall()
    assert deliveries.defer(claim, {job: FACTS}) == [job]
    assert deliveries.count_deferred() == 0


def test_a_deferred_record_has_no_lifetime_until_it_is_pushed(queue, deliveries, redis, job):
    claim = deliveries.claim("request", [job], lifetime_s=60)
    deliveries.defer(claim, {job: FACTS})
    finish(queue, job, JobOutcome(prediction={"result": []}))
    assert redis.ttl(keys.TASK + job) == -1
    deliveries.take([job], 1)
    deliveries.pushed([job], keep_s=50)
    assert 0 < redis.ttl(keys.TASK + job) <= 50


@pytest.mark.parametrize("forgotten", ["everything but the project", "everything, the address is in the settings"])
def test_tasks_that_were_forgotten_while_a_request_waited_are_deferred_and_queued_again(
    settings, redis, label_studio, monkeypatch, forgotten
):
    address = label_studio.url if "settings" in forgotten else ""
    app = create_app(settings.model_copy(update={"predict_deadline_s": 0.2, "label_studio_url": address}))
    service = app.extensions["transfiner"]
    client = app.test_client()
    client.post("/setup", json=setup_body(label_studio.url, TOKEN))
    look = service.queue.records.look

    def forget(job_ids: list[str]) -> tuple[list[str], list[str]]:
        redis.flushall()
        return look(job_ids)

    monkeypatch.setattr(service.queue.records, "look", forget)
    monkeypatch.setattr("backend.queue.job_queue.RECHECK_S", 60.0)
    answer = client.post("/predict", json=predict_body(tasks(3), project=PROJECT))
    assert answer.get_json() == {"results": []}
    assert service.predictions.deliveries.count_deferred() == 3
    assert service.queue.depth()["predict"] == 3


def test_label_studio_without_a_known_address_hears_that_nothing_can_be_pushed(settings, redis):
    client = create_app(settings.model_copy(update={"predict_deadline_s": 0.2})).test_client()
    answer = client.post("/predict", json=predict_body(tasks(1), project=PROJECT))
    assert answer.status_code == 503
    assert "LABEL_STUDIO_URL" in answer.get_json()["hint"]


@pytest.mark.parametrize("how", ["its worker comes back", "a person retries it"])
def test_a_deferred_task_that_was_parked_is_deferred_again_when_it_is_queued_again(queue, deliveries, redis, job, how):
    """The pusher has given it up meanwhile: it would be computed, and nobody would deliver it."""
    assert deliveries.defer(deliveries.claim("request", [job], lifetime_s=60), {job: FACTS}) == []
    for name in ("w1", "w2"):
        vitals = Heartbeat(redis, name, lost_after_s=60)
        vitals.beat({})
        assert Batcher(queue, vitals, queue.settings).first() is not None
        vitals.leave()
        assert OrphanSearch(queue).run() == [job]
    assert states(queue, [job]) == ["parked"]
    assert Pusher(queue, queue.settings, "w3").push_ready() == 0
    assert deliveries.count_deferred() == 0
    if how == "a person retries it":
        assert queue.retry(job)
    else:
        assert absolve(queue, "w1") == [job]
    assert states(queue, [job]) == ["queued"]
    entry = deliveries.deferred_of([job])[job]
    assert (entry["project"], int(entry["task"])) == (PROJECT, 1)
    assert redis.ttl(keys.TASK + job) == -1, "it waits until it is delivered"
