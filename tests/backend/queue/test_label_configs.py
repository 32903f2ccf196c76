"""A label config lies in the queue once, however many tasks name it."""

from __future__ import annotations

import pytest

from backend.queue import keys
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.job_store import CACHE_SIZE, JobOutcome, LabelConfigs, config_digest
from backend.queue.recovery import Heartbeat
from backend.worker.main import Batcher
from tests.support.service import CONFIG, finish

pytestmark = pytest.mark.service


def jobs(count: int, label_config: str = CONFIG) -> list[PredictionJob]:
    return [
        PredictionJob("7.1", {"id": n, "data": {"image": f"{n}"}}, f"{n}", label_config, "v1") for n in range(count)
    ]


def test_jobs_name_their_label_config_and_workers_get_its_text(settings, redis):
    queue = JobQueue(redis, settings)
    waiting_jobs = jobs(3)
    queue.submit(waiting_jobs)
    (config_key,) = redis.keys(f"{keys.CONFIG}*")
    assert redis.get(config_key).decode() == CONFIG
    assert redis.ttl(config_key) > 24 * 3600, "it outlives every task that waits"
    assert all(CONFIG not in str(redis.hgetall(keys.TASK + job.id)) for job in waiting_jobs)
    batch = Batcher(JobQueue(redis, settings), Heartbeat(redis, "w", lost_after_s=60), settings).first()
    assert batch is not None
    assert [job.label_config for job in batch.jobs.values()] == [CONFIG] * 3
    assert list(batch.jobs) == [job.id for job in batch.jobs.values()]


def test_a_task_that_is_retried_keeps_its_label_config(settings, redis):
    queue = JobQueue(redis, settings)
    (job,) = jobs(1)
    queue.submit([job])
    finish(queue, job.id, JobOutcome(error="no such image"))
    assert queue.retry(job.id)
    batch = Batcher(queue, Heartbeat(redis, "w", lost_after_s=60), settings).first()
    assert batch is not None
    assert list(batch.jobs.values()) == [job]


def test_a_forgotten_label_config_is_empty(settings, redis):
    queue = JobQueue(redis, settings)
    queue.submit(jobs(1))
    redis.delete(*redis.keys(f"{keys.CONFIG}*"))
    batch = Batcher(queue, Heartbeat(redis, "w", lost_after_s=60), settings).first()
    assert batch is not None
    assert [job.label_config for job in batch.jobs.values()] == [""]


def test_a_worker_keeps_the_last_label_configs_only(settings, redis):
    configs = LabelConfigs(redis)
    xmls = [f"{CONFIG}<!-- {number} -->" for number in range(CACHE_SIZE + 3)]
    with redis.pipeline() as pipe:
        configs.store(xmls, pipe)
        pipe.execute()
    assert [configs.read(config_digest(xml)) for xml in xmls] == xmls
    assert len(configs._cache) == CACHE_SIZE


def test_label_configs_are_counted(settings, redis, monkeypatch):
    """Each request may bring another one, and they are kept for days."""
    monkeypatch.setattr("backend.queue.job_store.MOST_CONFIGS", 5)
    queue = JobQueue(redis, settings)
    for number in range(9):
        queue.submit(jobs(1, f"{CONFIG}<!-- {number % 8} -->"))
    digests = {redis.get(key).decode()[len(CONFIG) :] for key in redis.keys(f"{keys.CONFIG}*")}
    assert digests == {f"<!-- {number} -->" for number in (0, 4, 5, 6, 7)}, "those that were used last"
    assert redis.zcard(keys.CONFIGS) == 5
