"""Which workers take the queue `train` now."""

from __future__ import annotations

import time
from typing import Any

from redis import Redis

from backend.connection import text

TRAINERS = "transfiner:trainers"
# One that was not heard of for this long, in s, is gone.
LOST_AFTER_S = 15.0


def beat(connection: Redis, worker: str) -> None:
    """A sign of life."""
    now = time.time()
    connection.zadd(TRAINERS, {worker: now})
    connection.zremrangebyscore(TRAINERS, 0, now - 60 * LOST_AFTER_S)


def living_trainers(connection: Redis) -> list[str]:
    """Names, in order."""
    names: Any = connection.zrangebyscore(TRAINERS, time.time() - LOST_AFTER_S, "+inf")
    return sorted(text(name) for name in names)


def leave(connection: Redis, worker: str) -> None:
    """A decent end."""
    connection.zrem(TRAINERS, worker)
