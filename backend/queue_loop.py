"""RQ's loop ends when the queue server goes away; ours waits until it is back, with what was loaded still loaded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

import redis
from rq.exceptions import StopRequested

from backend.connection import WORKER_BLOCK_S

log = logging.getLogger(__name__)
RECONNECT_S = 0.5
# RQ blocks on the queue for this many seconds less 15, which our connection's own timeout must outlast.
WORKER_TTL_S = WORKER_BLOCK_S + 15


class LoopWorker(Protocol):
    """The part of an RQ worker that is used here."""

    is_asked_to_stop: bool

    def work(self, *, burst: bool, logging_level: str) -> bool: ...


def serve_queue(
    make_worker: Callable[[], LoopWorker], connection: redis.Redis, *, burst: bool, back: Callable[[], object]
) -> None:
    """Work until asked to stop, or with `burst` until nothing waits.

    Args:
        make_worker: a fresh worker for each stretch between losses of the queue server.
        back: called when the queue server has come back.
    """
    while True:
        try:
            worker = make_worker()
            worker.work(burst=burst, logging_level="WARNING")
            if burst or worker.is_asked_to_stop:
                return
        except StopRequested:
            return
        except redis.RedisError as error:
            log.warning("the queue server went away: %s", error)
        _await_queue_server(connection)
        back()


def _await_queue_server(connection: redis.Redis) -> None:
    while True:
        try:
            connection.ping()
            return
        except redis.RedisError:
            time.sleep(RECONNECT_S)
