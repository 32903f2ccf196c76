"""One subscription for all requests of a process that wait."""

from __future__ import annotations

import pytest

from backend.queue import job_queue
from backend.queue.job_queue import CompletionListener
from backend.queue.keys import FINISHED_CHANNEL
from tests.support.service import wait_until

pytestmark = pytest.mark.service


def test_each_request_hears_of_its_own_tasks_over_one_subscription(redis):
    news = CompletionListener(redis)
    subscribed = redis.pubsub_numsub(FINISHED_CHANNEL)[0][1]
    with news.about(["a", "b"]) as first, news.about(["b"]) as second:
        assert redis.pubsub_numsub(FINISHED_CHANNEL)[0][1] <= subscribed + 1
        for job_id in ("c", "b", "a"):
            redis.publish(FINISHED_CHANNEL, job_id)
        assert second.take(20) == {"b"}
        heard = set()
        wait_until(lambda: heard.update(first.take(0.05)) or heard == {"a", "b"})
        assert second.take(0.01) == set()
    news.close()


def test_it_stops_listening_when_nobody_waits_and_begins_again(redis, monkeypatch):
    monkeypatch.setattr(job_queue, "IDLE_S", 0.0)
    monkeypatch.setattr(job_queue, "LOOK_UP_S", 0.05)
    news = CompletionListener(redis)
    for _ in range(2):
        with news.about(["a"]) as arrivals:
            redis.publish(FINISHED_CHANNEL, "a")
            assert arrivals.take(20) == {"a"}
        wait_until(lambda: news._thread is None)
