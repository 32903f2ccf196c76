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

from backend.queue.keys import requester_key

# A lease outlives its last renewal by this, in s: renewals come every second, a busy API process may be late.
LEASE_S = 10.0


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
        """Renew the lease of a request; tasks whose leases have all ended are dropped when a worker takes them."""
        if asker.token:
            self.connection.set(requester_key(asker.token), "1", px=int(lease_s * 1000))

    def leave(self, asker: Requester) -> None:
        """End the lease of a request that waits no more."""
        if asker.token:
            self.connection.delete(requester_key(asker.token))
