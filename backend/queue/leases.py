"""Who still waits for a task, so that work that nobody wants any more is dropped before it costs compute time.

A request that waits *asks* for its tasks under a name of its own and renews a lease while it waits and its client is
still connected. A task whose askers are all gone is dropped when a worker takes it, unless it is deferred (it will be
pushed) or nobody ever waited for it (an operator's retry, a prediction after a promotion).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from redis import Redis

# A lease outlives its last renewal by this, in s: renewals come every second, a busy API process may be late.
LEASE_S = 10.0
# Lua: forgets a task that nobody wants and says whether it did. Part of the script that takes tasks
# (backend/worker/batcher.py), so that whoever asks for one of them afterwards hears that it is new.
FORGET_IF_UNWANTED = """
local function forget_if_unwanted(job, record)
  local askers = redis.call('SMEMBERS', 'transfiner:askers:' .. job)
  if #askers == 0 or redis.call('HEXISTS', 'transfiner:deferred', job) == 1 then return false end
  for _, asker in ipairs(askers) do
    if redis.call('EXISTS', 'transfiner:asker:' .. asker) == 1 then return false end
  end
  redis.call('DEL', record, 'transfiner:askers:' .. job)
  redis.call('ZREM', 'transfiner:tasks', job)
  return true
end
"""


def requesters_key(job_id: str) -> str:
    return f"transfiner:askers:{job_id}"


def requester_key(token: str) -> str:
    return f"transfiner:asker:{token}"


@dataclass(frozen=True)
class Requester:
    """A request that waits.

    Attributes:
        token: its name in Redis; "" for who leaves tasks behind without waiting for them.
        is_gone: whether its client has hung up.
    """

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    is_gone: Callable[[], bool] = lambda: False


NO_REQUESTER = Requester("")


class RequestLeases:
    """Leases behind one connection."""

    def __init__(self, connection: Redis) -> None:
        self.connection = connection

    def stay(self, asker: Requester, lease_s: float = LEASE_S) -> None:
        """Somebody waits still."""
        if asker.token:
            self.connection.set(requester_key(asker.token), "1", px=int(lease_s * 1000))

    def leave(self, asker: Requester) -> None:
        """Nobody waits under this name any more."""
        if asker.token:
            self.connection.delete(requester_key(asker.token))
