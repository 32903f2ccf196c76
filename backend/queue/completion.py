"""Which tasks have ended, said to all requests of a process that wait: one subscription for all of them.

A subscription of each request's own cost a connection, and every request would read every other's news.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Collection, Iterator

import redis
from redis import Redis
from redis.client import PubSub

from backend.queue.connection import text
from backend.queue.keys import FINISHED_CHANNEL

log = logging.getLogger(__name__)
# The first request waits this long, in s, for the subscription; later rechecks find what was missed before it.
LISTENING_S = 0.5
LOOK_UP_S = 1.0
RECONNECT_S = 0.2
# Without any request for this long, in s, the subscription ends.
IDLE_S = 60.0


class Subscription:
    """What one request has heard and not yet looked at."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ids: set[str] = set()

    def add(self, job_id: str) -> None:
        with self._changed:
            self._ids.add(job_id)
            self._changed.notify()

    def take(self, timeout_s: float) -> set[str]:
        """Ids of tasks that have ended, waiting up to `timeout_s` for the first."""
        with self._changed:
            if not self._ids:
                self._changed.wait(max(timeout_s, 0.0))
            taken, self._ids = self._ids, set()
        return taken


class CompletionListener:
    """A thread that listens while requests wait, and for a minute after the last one."""

    def __init__(self, connection: Redis) -> None:
        self.connection = connection
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Subscription]] = {}
        self._listening = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @contextlib.contextmanager
    def about(self, job_ids: Collection[str]) -> Iterator[Subscription]:
        """While inside, these tasks' ends are heard, from a moment before the block begins."""
        arrivals = Subscription()
        with self._lock:
            for job_id in job_ids:
                self._waiting.setdefault(job_id, []).append(arrivals)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="finished news", daemon=True)
                self._thread.start()
        self._listening.wait(LISTENING_S)
        try:
            yield arrivals
        finally:
            with self._lock:
                for job_id in job_ids:
                    self._waiting[job_id].remove(arrivals)
                    if not self._waiting[job_id]:
                        del self._waiting[job_id]

    def close(self) -> None:
        """Before the connections of this process are closed under the thread that listens."""
        self._is_closed = True

    def _run(self) -> None:
        while True:
            try:
                with self.connection.pubsub() as news:
                    news.subscribe(FINISHED_CHANNEL)
                    self._listen(news)
                return
            except (redis.RedisError, OSError, ValueError) as error:
                if self._is_closed:
                    return
                if not isinstance(error, redis.RedisError):
                    raise
                self._listening.clear()
                log.debug("the queue server does not answer: %s", error)
                if self._ends():
                    return
                time.sleep(RECONNECT_S)

    def _listen(self, news: PubSub) -> None:
        heard_at = time.monotonic()
        while True:
            message = news.get_message(timeout=LOOK_UP_S)
            if message is not None and message["type"] == "subscribe":
                self._listening.set()
            elif message is not None and message["type"] == "message":
                self._say(text(message["data"]))
            if self._waiting:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at >= IDLE_S and self._ends():
                return

    def _say(self, job_id: str) -> None:
        with self._lock:
            waiting = list(self._waiting.get(job_id, ()))
        for arrivals in waiting:
            arrivals.add(job_id)

    def _ends(self) -> bool:
        """Whether this thread may end; the next request starts another."""
        with self._lock:
            if self._waiting:
                return False
            self._listening.clear()
            self._thread = None
            return True
