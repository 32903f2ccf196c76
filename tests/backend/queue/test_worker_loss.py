"""Workers that were cut off, frozen or killed, seen from the queue: what counts against a task and what does not."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import OutOfMemoryError, Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from backend.queue import keys
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.job_store import FinishedJob, JobOutcome
from backend.queue.locks import RenewedLock
from backend.queue.recovery import Heartbeat, OrphanSearch, absolve, living_workers, requeue_jobs_of
from backend.worker.main import Batcher, Recorder, serve_queue
from tests.support.service import CONFIG, finish, states, wait_until

GOOD = FinishedJob(JobOutcome(prediction={"result": []}), {"instances": 0, "regions": 0, "seconds": 0.0})


@pytest.fixture
def queue(settings, redis) -> JobQueue:
    return JobQueue(redis, settings)


def submit(queue: JobQueue, count: int) -> list[str]:
    jobs = [
        PredictionJob("7.1", {"id": number, "data": {"image": f"{number}.png"}}, f"{number}.png", CONFIG, "v1")
        for number in range(count)
    ]
    queue.submit(jobs)
    return [job.id for job in jobs]


def worker(queue: JobQueue, name: str) -> Batcher:
    """A worker that gives signs of life."""
    vitals = Heartbeat(queue.connection, name, lost_after_s=60)
    vitals.beat({})
    return Batcher(queue, vitals, queue.settings)


def silence(queue: JobQueue, batcher: Batcher) -> None:
    """What others see of a worker that was killed, frozen or cut off."""
    queue.connection.delete(keys.WORKER + batcher.vitals.name)


def test_a_worker_that_comes_back_takes_back_what_was_blamed_on_its_tasks(queue):
    """Four cuts of an innocent task."""
    ids = submit(queue, 2)
    names = [f"w{number}" for number in range(4)]
    for name in names:
        batcher = worker(queue, name)
        batch = batcher.first()
        assert batch is not None
        silence(queue, batcher)
        assert set(OrphanSearch(queue).run()) == set(batch.jobs)
        batcher.vitals.beat({})
        assert set(absolve(queue, name)) == set(batch.jobs)
        assert states(queue, ids) == ["queued", "queued"]


def test_a_task_that_was_parked_for_a_frozen_worker_is_queued_again(queue):
    (job_id,) = submit(queue, 1)
    for name in ("w1", "w2"):
        batcher = worker(queue, name)
        assert batcher.first() is not None
        silence(queue, batcher)
        assert OrphanSearch(queue).run() == [job_id]
    assert states(queue, [job_id]) == ["parked"]
    assert "2 attempts" in queue.records.outcomes([job_id])[job_id].error
    assert absolve(queue, "w1") == [job_id]
    assert states(queue, [job_id]) == ["queued"]
    assert queue.records.outcomes([job_id]) == {}
    suspect = worker(queue, "w3").first()
    assert suspect is not None
    assert suspect.is_alone, "one worker did die while it ran it"


def test_a_worker_that_loses_the_connection_gets_its_tasks_again_without_blame(queue):
    ids = submit(queue, 3)
    batcher = worker(queue, "w1")
    for _ in range(5):
        batch = batcher.first()
        assert batch is not None
        assert not batch.is_alone
        assert set(requeue_jobs_of(queue, "w1")) == set(ids)


def test_a_living_worker_keeps_its_tasks_whoever_thinks_it_dead(queue):
    """Its heartbeat came back between the look and the taking."""
    ids = submit(queue, 1)
    batcher = worker(queue, "w1")
    assert batcher.first() is not None
    silence(queue, batcher)
    watching = JobQueue(queue.connection, queue.settings)
    batcher.vitals.beat({})
    assert OrphanSearch(watching).run() == []
    assert states(queue, ids) == ["running"]


def test_a_heartbeat_that_stands_still_is_no_sign_of_life(queue, monkeypatch):
    """The clock of the queue server was set back, so the heartbeat of a dead worker does not expire."""
    ids = submit(queue, 1)
    dead, living = worker(queue, "dead"), worker(queue, "living")
    assert dead.first() is not None
    search = OrphanSearch(queue)
    assert search.run() == []
    true_time = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: true_time() + 3 * queue.settings.worker_lost_s)
    living.vitals.beat({})
    assert search.run() == ids
    assert set(living_workers(queue.connection)) == {"living"}


def test_two_that_take_over_put_each_task_back_once(queue):
    ids = submit(queue, 4)
    batcher = worker(queue, "w1")
    assert batcher.first() is not None
    silence(queue, batcher)
    assert sorted(OrphanSearch(queue).run() + OrphanSearch(queue).run()) == sorted(ids)
    assert sorted(queue.waiting()) == sorted(ids)


def test_a_task_listed_twice_is_taken_once(queue):
    ids = submit(queue, 2)
    queue.connection.rpush(keys.PREDICT_LANE, *ids)
    batcher = worker(queue, "w1")
    batch = batcher.first()
    assert batch is not None
    assert list(batch.jobs) == ids
    assert batcher.first() is None


def test_of_requests_that_submit_the_same_tasks_at_the_same_moment_one_queues_each(queue, settings):
    jobs = [PredictionJob("7.1", {"id": number, "data": {}}, "x.png", CONFIG, "v1") for number in range(60)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda seed: queue.submit(random.Random(seed).sample(jobs, 40)), range(12)))
    ids = {job_id for answer in answers for job_id in answer}
    for job_id in ids:
        heard = [answer[job_id] for answer in answers if job_id in answer]
        assert sorted(heard) == ["new", *["queued"] * (len(heard) - 1)]
    assert sorted(queue.waiting()) == sorted(ids)


def test_a_task_that_cannot_be_queued_is_unknown(queue, redis: Redis):
    """The queue server is full: nothing of the task is left for others to trip over."""
    before = redis.config_get("maxmemory")["maxmemory"]
    redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(OutOfMemoryError):
            submit(queue, 2)
    finally:
        redis.config_set("maxmemory", before)
    assert list(redis.scan_iter(f"{keys.PREFIX}*")) == []
    assert len(submit(queue, 2)) == len(queue.waiting()) == 2


def test_retry_leaves_a_running_task_alone(queue):
    (job_id,) = submit(queue, 1)
    assert worker(queue, "w1").first() is not None
    assert not queue.retry(job_id)
    assert states(queue, [job_id]) == ["running"]


@pytest.mark.parametrize("state", ["failed", "parked"])
def test_retry_queues_a_task_that_has_ended_badly_once(queue, state):
    (job_id,) = submit(queue, 1)
    assert worker(queue, "w1").first() is not None
    finish(queue, job_id, JobOutcome(error="bad luck"))
    queue.connection.hset(keys.TASK + job_id, "state", state)
    assert queue.retry(job_id)
    assert not queue.retry(job_id)
    assert queue.records.outcomes([job_id]) == {}
    batch = worker(queue, "w2").first()
    assert batch is not None
    assert list(batch.jobs) == [job_id]
    assert not batch.is_alone, "its deaths are forgotten"


def test_the_newest_records_say_how_many_tasks_are_before_each(queue):
    ids = submit(queue, 3)
    queue._promote([ids[2]])
    rows = {row["job"]: row for row in queue.recent(10)}
    assert {job_id: row["position"] for job_id, row in rows.items()} == {ids[2]: 0, ids[0]: 1, ids[1]: 2}
    assert worker(queue, "w1").first() is not None
    assert "position" not in {row["job"]: row for row in queue.recent(10)}[ids[2]]
    assert {row["project"] for row in queue.recent(2)} == {"7.1"}
    assert len(queue.recent(2)) == 2


def test_the_result_of_a_worker_that_was_thought_dead_stays(queue):
    (job_id,) = submit(queue, 1)
    batcher = worker(queue, "w1")
    assert batcher.first() is not None
    silence(queue, batcher)
    OrphanSearch(queue).run()
    Recorder(queue, "w1").record({job_id: GOOD}, {})
    finish(queue, job_id, JobOutcome(error="another worker could not"))
    assert queue.records.outcomes([job_id])[job_id].error == ""
    assert worker(queue, "w2").first() is None, "nothing is left to compute"


class NeverStops:
    is_set = False


@pytest.mark.parametrize("error", [RedisConnectionError("cut"), OutOfMemoryError("full")])
def test_the_loop_waits_out_whatever_the_queue_server_does(queue, redis, monkeypatch, error):
    monkeypatch.setattr("backend.worker.main.RETRY_S", 0.01)
    failures, connections = [error, error], []

    def work() -> bool:
        if failures:
            raise failures.pop()
        return False

    serve_queue(work, redis, NeverStops(), burst=True, on_connect=lambda: connections.append(1))  # type: ignore[arg-type]
    assert len(connections) == 3


def test_what_a_full_queue_server_did_not_take_is_stored_later(queue, redis: Redis):
    ids = submit(queue, 2)
    assert worker(queue, "w1").first() is not None
    recorder = Recorder(queue, "w1")
    before = redis.config_get("maxmemory")["maxmemory"]
    redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(OutOfMemoryError):
            recorder.record(dict.fromkeys(ids, GOOD), {})
    finally:
        redis.config_set("maxmemory", before)
    assert states(queue, ids) == ["running", "running"]
    recorder.flush()
    assert states(queue, ids) == ["done", "done"]
    assert not redis.exists(keys.RUNNING + "w1")


def test_a_lock_that_was_lost_is_not_deleted_by_its_former_owner(redis):
    with RenewedLock(redis, "a lock", "first", lost_after_s=60) as first:
        assert first.is_held
        redis.delete("a lock")
        with RenewedLock(redis, "a lock", "second", lost_after_s=60) as second:
            assert second.is_held
            assert not first.renew()
            first.__exit__(None, None, None)
            assert redis.get("a lock") == b"second"


@pytest.mark.parametrize("is_retaken", [True, False])
def test_a_lock_that_the_queue_server_forgot_is_retaken_only_where_nobody_can_have_done_its_work(redis, is_retaken):
    with RenewedLock(redis, "a lock", "first", lost_after_s=60, is_retaken=is_retaken) as lock:
        redis.delete("a lock")
        assert lock.renew() == is_retaken
        assert bool(redis.exists("a lock")) == is_retaken


def test_a_lock_is_renewed_while_its_owner_lives(redis):
    with RenewedLock(redis, "a lock", "first", lost_after_s=1.0):
        redis.pexpire("a lock", 100_000)
        wait_until(lambda: redis.pttl("a lock") <= 1000)
    assert not redis.exists("a lock")
