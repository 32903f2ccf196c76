"""Locks with an owner and an expiry (redis-py's own), renewed while their owner lives."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

import redis
from redis import Redis
from redis.exceptions import LockError
from redis.lock import Lock

from backend.queue.connection import text
from backend.queue.keys import learning_lock_key

log = logging.getLogger(__name__)


class RenewedLock:
    """A lock for `with` that is tried once; `is_held` is False where it was not acquired, or was lost since.

    A thread renews it.

    Args:
        owner: the value of the lock; no two that may hold it at the same time are equal.
        lost_after_s: the lock ends by itself this long after its owner died or was frozen.
        is_retaken: acquire a free lock again that the queue server lost in a restart. Not where another owner may
            have held it meanwhile and done the guarded work.
    """

    def __init__(
        self, connection: Redis, key: str, owner: str, *, lost_after_s: float, is_retaken: bool = False
    ) -> None:
        self.key = key
        self.owner = owner
        self.lost_after_s = lost_after_s
        self.is_retaken = is_retaken
        self.is_held = False
        # One owner with two threads: the token must not be a thread's own.
        self._lock = Lock(connection, key, timeout=lost_after_s, thread_local=False)
        self._renewing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lock {key}", daemon=True)

    def __enter__(self) -> RenewedLock:
        self.is_held = self._acquire()
        if self.is_held:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._thread.is_alive():
            return
        self._stop.set()
        self._thread.join()
        try:
            self._lock.release()
        except LockError:
            log.warning("the lock %s was lost before its end", self.key)
        except redis.RedisError as failure:
            log.warning("the lock %s was not given back and will expire: %s", self.key, failure)

    def renew(self) -> bool:
        """Ask the queue server whether the lock is still ours, and renew it."""
        with self._renewing:
            try:
                self._lock.reacquire()
            except LockError:
                self.is_held = self.is_held and self.is_retaken and self._acquire()
            return self.is_held

    def _acquire(self) -> bool:
        return bool(self._lock.acquire(blocking=False, token=self.owner))

    def _keep(self) -> None:
        while not self._stop.wait(self.lost_after_s / 4):
            try:
                if not self.renew():
                    log.error("the lock %s was taken by somebody else", self.key)
                    return
            except redis.RedisError as error:
                # The guarded work goes on; the lock is acquired again once the server answers.
                log.warning("the lock %s cannot be renewed: %s", self.key, error)


def project_lock(connection: Redis, project: str, owner: str, *, lost_after_s: float) -> RenewedLock:
    """The lock that allows one training of a project at a time."""
    return RenewedLock(connection, learning_lock_key(project), owner, lost_after_s=lost_after_s, is_retaken=True)


def lock_owner(connection: Redis, project: str) -> str:
    """The owner of a project's training lock; "" for nobody."""
    return text(connection.get(learning_lock_key(project)))
