"""One training per project at a time: a lock with an owner and an expiry, renewed while the owner lives."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

import redis
from redis import Redis

from backend.queue.connection import text

log = logging.getLogger(__name__)

# Only the owner renews; a lock that the queue server forgot (it was restarted) is simply taken again.
RENEW_LOCK = """
local owner = redis.call('GET', KEYS[1])
if not owner or owner == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 1
end
return 0
"""
RELEASE_LOCK = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


def lock_key(project: str) -> str:
    return f"transfiner:learning:{project}:lock"


def lock_owner(connection: Redis, project: str) -> str:
    """Who trains the project now; "" for nobody."""
    return text(connection.get(lock_key(project)))


class ProjectLock:
    """The lock of one project, for `with`; `is_held` says whether it was got, and turns False when it is lost.

    Args:
        owner: names the worker and the attempt; no two of them are equal.
        lost_after_s: the lock ends by itself this long after its owner died.
    """

    def __init__(self, connection: Redis, project: str, owner: str, *, lost_after_s: float) -> None:
        self.connection = connection
        self.key = lock_key(project)
        self.owner = owner
        self.lost_after_ms = int(lost_after_s * 1000)
        self.is_held = False
        self._renew = connection.register_script(RENEW_LOCK)
        self._release = connection.register_script(RELEASE_LOCK)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lock {project}", daemon=True)

    def __enter__(self) -> ProjectLock:
        self.is_held = bool(self.connection.set(self.key, self.owner, nx=True, px=self.lost_after_ms))
        if self.is_held:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if not self._thread.is_alive():
            return
        self._thread.join()
        try:
            self._release(keys=[self.key], args=[self.owner])
        except redis.RedisError as failure:
            log.warning("the lock %s was not given back and will expire: %s", self.key, failure)

    def _keep(self) -> None:
        while not self._stop.wait(self.lost_after_ms / 4000):
            try:
                if not self._renew(keys=[self.key], args=[self.owner, self.lost_after_ms]):
                    log.error("the lock %s was taken by somebody else; this training ends", self.key)
                    self.is_held = False
                    return
            except redis.RedisError as error:
                # The training is worth more than the lock: it is taken again once the server answers.
                log.warning("the lock %s cannot be renewed: %s", self.key, error)
