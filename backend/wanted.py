"""Who still waits for a task, so that work that nobody wants any more is dropped before it costs compute time.

A request that waits *asks* for its tasks under a name of its own and renews a lease while it waits and its client is
still connected. A task whose askers are all gone is dropped when a worker takes it, unless it is deferred (it will be
pushed) or nobody ever waited for it (an operator's retry, a prediction after a promotion).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from redis import Redis

from backend.connection import text
from backend.records import record_key

# A lease outlives its last renewal by this, in s: renewals come every second, a busy API process may be late.
LEASE_S = 10.0
# Of the tasks asked for (KEYS), forgets and returns those that nobody wants. Atomic: whoever asks for one of them
# afterwards hears that it is new.
FORGET_UNWANTED = """
local dropped = {}
for _, job in ipairs(KEYS) do
  local askers = redis.call('SMEMBERS', 'transfiner:askers:' .. job)
  local wanted = #askers == 0 or redis.call('HEXISTS', 'transfiner:deferred', job) == 1
  for _, asker in ipairs(askers) do
    wanted = wanted or redis.call('EXISTS', 'transfiner:asker:' .. asker) == 1
  end
  if not wanted then
    redis.call('DEL', ARGV[1] .. job, 'transfiner:askers:' .. job)
    redis.call('ZREM', 'transfiner:tasks', job)
    dropped[#dropped + 1] = job
  end
end
return dropped
"""


def askers_key(job_id: str) -> str:
    return f"transfiner:askers:{job_id}"


def asker_key(token: str) -> str:
    return f"transfiner:asker:{token}"


@dataclass(frozen=True)
class Asker:
    """A request that waits.

    Attributes:
        token: its name in Redis; "" for who leaves tasks behind without waiting for them.
        is_gone: whether its client has hung up.
    """

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    is_gone: Callable[[], bool] = lambda: False


NOBODY = Asker("")


class Wanted:
    """Leases behind one connection."""

    def __init__(self, connection: Redis) -> None:
        self.connection = connection
        self._forget = connection.register_script(FORGET_UNWANTED)

    def stay(self, asker: Asker, lease_s: float = LEASE_S) -> None:
        """Somebody waits still."""
        if asker.token:
            self.connection.set(asker_key(asker.token), "1", px=int(lease_s * 1000))

    def leave(self, asker: Asker) -> None:
        """Nobody waits under this name any more."""
        if asker.token:
            self.connection.delete(asker_key(asker.token))

    def forget_unwanted(self, job_ids: Sequence[str]) -> list[str]:
        """Those of the given tasks that nobody wants; their records are gone by now."""
        return [text(job_id) for job_id in self._forget(keys=list(job_ids), args=[record_key("")])]
