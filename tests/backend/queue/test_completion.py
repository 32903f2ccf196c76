"""One subscription for all requests of a process that wait."""

from __future__ import annotations

import pytest

from backend.queue.job_queue import CompletionListener
from backend.queue.keys import FINISHED_CHANNEL
from tests.support.service import wait_until

pytestmark = pytest.mark.service


def test_each_request_hears_of_its_own_tasks_over_one_subscription(redis):
    news = CompletionListener(redis)
    subscriber_count = redis.pubsub_numsub(FINISHED_CHANNEL)[0][1]
    with news.about(["a", "b"]) as first, news.about(["b"]) as second:
        assert redis.pubsub_numsub(FINISHED_CHANNEL)[0][1] <= subscriber_count + 1
        for job_id in ("c", "b", "a"):
            redis.publish(FINISHED_CHANNEL, job_id)
        assert second.take(20) == {"b"}
        heard = set()
        wait_until(lambda: heard.update(first.take(0.05)) or heard == {"a", "b"})
        assert second.take(0.01) == set()
    news.close()
