"""HTTP connections that are checked and watched as soon as they exist, before anything is sent on them."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from integration.addresses import AddressPolicy, AddressRefused


def guarded_session(policy: AddressPolicy, deadline: Deadline) -> requests.Session:
    """A session for one download: cookies and connections of one host never meet another.

    Args:
        policy: which peers may be talked to; others raise AddressRefused.
        deadline: cuts the session's connections.
    """
    session = requests.Session()
    session.trust_env = False  # no proxy, no .netrc: the address check must see the real peer
    for prefix in ("http://", "https://"):
        session.mount(prefix, _GuardedAdapter(policy, deadline))
    return session


@dataclass(slots=True)
class Deadline:
    """Cuts the connections of a download when its time is over, at whatever stage they hang."""

    timeout_s: float
    is_over: bool = False
    _sockets: list[socket.socket] = field(default_factory=list)
    _end_s: float = 0.0
    _timer: threading.Timer | None = None

    def __enter__(self) -> Deadline:
        self._end_s = time.monotonic() + self.timeout_s
        self._timer = threading.Timer(self.timeout_s, self._cut)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        for sock in self._sockets:
            sock.close()

    def left_s(self) -> float:
        """Seconds left; raises TimeoutError when there are none."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            self.is_over = True
            raise TimeoutError
        return left_s

    def watch(self, sock: socket.socket) -> None:
        """Cut this connection, too. A duplicate is kept: TLS takes the original away."""
        self._sockets.append(sock.dup())

    def _cut(self) -> None:
        self.is_over = True
        for sock in list(self._sockets):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed by the other side already


class _GuardedAdapter(HTTPAdapter):
    def __init__(self, policy: AddressPolicy, deadline: Deadline) -> None:
        self._policy = policy
        self._deadline = deadline
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: object, **kwargs: object) -> None:
        super().init_poolmanager(*args, **kwargs)  # type: ignore[arg-type]
        policy, deadline = self._policy, self._deadline

        def check(sock: socket.socket, host: str, port: int) -> socket.socket:
            try:
                policy.check(host, port, sock.getpeername()[0])
            except AddressRefused:
                sock.close()
                raise
            deadline.watch(sock)
            return sock

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return check(super()._new_conn(), self.host, self.port or 80)

        class Secure(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return check(super()._new_conn(), self.host, self.port or 443)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
