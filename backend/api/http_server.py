"""The HTTP server (waitress): an event loop reads requests, threads answer those that have arrived as a whole.

A slow client holds a socket and never a thread. What waitress leaves open is bounded here: a client that sends a byte
now and then is cut off too, and one address cannot hold all connections.
"""

from __future__ import annotations

import ctypes
import ipaddress
import logging
import resource
import signal
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

from flask import Flask
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer, create_server
from waitress.utilities import Error

from backend.settings import Settings

log = logging.getLogger(__name__)

# A connection on which nothing moves is closed after this time, in s.
IDLE_S = 10
# From the end of one answer (or the start of a connection) to the whole next request, in s.
REQUEST_S = 30
# Of all clients together, and of one address that is not this machine's.
CONNECTIONS, CONNECTIONS_PER_CLIENT = 1000, 250
# Each connection may have a file for its body and one for its answer beside its socket.
OPEN_FILES = 4096
HEADER_BYTES = 64 * 1024
# Bodies of all requests at hand, in sizes of the largest.
BODIES = 4
# A parameter of mallopt(3), by its number in malloc.h, and its value.
M_MMAP_THRESHOLD, RETURNED_BYTES = -3, 2**20


class HttpServer:
    """Serve an application on a host and a port; 0 lets the system choose one. Raises OSError if the port is in use."""

    def __init__(self, app: Flask, settings: Settings, host: str, port: int) -> None:
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # warns of every request that waits for a thread
        self._sockets: dict[int, Any] = {}
        files = _raise_file_limit()
        _return_freed_memory()
        self._server = create_server(
            app,
            map=self._sockets,
            host=host,
            port=port,
            threads=settings.api_threads,
            connection_limit=min(CONNECTIONS, files // 3),
            channel_timeout=IDLE_S,
            cleanup_interval=1,
            asyncore_use_poll=True,  # select() ends at 1024 files
            channel_request_lookahead=1,  # else nobody would notice that a waiting client has hung up
            max_request_header_size=HEADER_BYTES,
            max_request_body_size=int(settings.max_request_mib * 2**20),
            # They tell that a request came through a proxy; the application never believes what they say.
            clear_untrusted_proxy_headers=False,
            log_socket_errors=False,
            ident=None,
            server_name="localhost",  # of requests without a Host, which only programs send
        )
        # Kept here: the event loop changes the map while other threads call `stop`.
        self._listener = next(server for server in self._sockets.values() if isinstance(server, BaseWSGIServer))
        for server in list(self._sockets.values()):
            if isinstance(server, BaseWSGIServer):
                server.channel_class = _Channel
        self.port = int(self._listener.effective_port)

    def run(self) -> None:
        """Serve until `stop`, or until `SystemExit`: requests at hand then have 5 s to be answered."""
        self._server.run()

    def run_until_signal(self, on_signal: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM or SIGINT; either calls `on_signal` first; for the main thread."""

        def end(_number: int, _frame: object) -> None:
            on_signal()
            raise SystemExit

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        self.run()

    def stop(self) -> None:
        """Make `run` return; for other threads."""
        self._listener.trigger.pull_trigger(self._close)

    def _close(self) -> None:
        self._server.task_dispatcher.shutdown()
        wasyncore.close_all(self._sockets)


class _BusyError(Error):
    """The answer when there is no room for a request's body."""

    code = 503
    reason = "Too many large requests at once, or no room on the disk; ask again in a moment"


class _Request(HTTPRequestParser):
    """One request. The size of all bodies together is limited: they are temporary files until their answer is sent."""

    path = ""  # waitress logs it, even for a request that ended before it had a path
    bodies: ClassVar[weakref.WeakKeyDictionary[_Request, int]] = weakref.WeakKeyDictionary()

    def received(self, data: bytes) -> int:
        """Called with the bytes that were read; returns how many of them belong to this request."""
        try:
            consumed_bytes = int(super().received(data))
        except OSError as error:
            log.error("the body of a request cannot be kept: %s", error)
            self._refuse(str(error))
            return len(data)
        if self.body_rcv is not None and not self.completed and self not in self.bodies:
            limit_bytes = self.adj.max_request_body_size
            size = limit_bytes if self.chunked else self.content_length
            if sum(self.bodies.values()) + size > BODIES * limit_bytes:
                self._refuse(f"{size} bytes more than are read at once")
            else:
                self.bodies[self] = size
        return consumed_bytes

    def close(self) -> None:
        """Called when the request is answered or its connection has ended."""
        self.bodies.pop(self, None)
        super().close()

    def _refuse(self, reason: str) -> None:
        self.error = _BusyError(reason)
        self.completed = True


class _Channel(HTTPChannel):
    """One connection, closed when its next request takes too long or its client has too many."""

    parser_class = _Request

    def __init__(self, server: Any, sock: Any, addr: Any, *args: Any, **options: Any) -> None:
        self.waiting_since = time.monotonic()
        super().__init__(server, sock, addr, *args, **options)
        if self.is_limited(addr[0]):
            same_client_count = sum(channel.addr[0] == addr[0] for channel in server.active_channels.values())
            self.will_close = same_client_count > CONNECTIONS_PER_CLIENT

    @staticmethod
    def is_limited(host: str) -> bool:
        """Whether a client's connections are limited; not on this machine, where a proxy may have many clients."""
        return not ipaddress.ip_address(host.partition("%")[0]).is_loopback

    def readable(self) -> bool:
        """Called at least once a second."""
        if not self.requests and time.monotonic() - self.waiting_since > REQUEST_S:
            self.will_close = True
        return bool(super().readable())

    def received(self, data: bytes) -> bool:
        """Called with the bytes that were read; closes on a bad request line, for which waitress logs a traceback."""
        try:
            return bool(super().received(data))
        except ValueError:
            self.will_close = True
            return False

    def send_continue(self) -> None:
        """Called for `Expect: 100-continue`; waitress would wait for a body even where none was announced."""
        if self.request.body_rcv is None:
            self.request.expect_continue = False
        else:
            super().send_continue()

    def handle_close(self) -> None:
        """Called when the connection has ended; frees the room of a body that did not arrive as a whole."""
        super().handle_close()
        if self.request is not None:
            self.request.close()

    def service(self) -> None:
        """Called by a thread for each whole request."""
        super().service()
        self.waiting_since = time.monotonic()


def _return_freed_memory() -> None:
    """Make glibc return freed blocks of this size at once: else each thread keeps those of its largest body."""
    if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)


def _raise_file_limit() -> int:
    """Raise this process's limit of open files towards `OPEN_FILES`; returns the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        return target
    return OPEN_FILES if soft == resource.RLIM_INFINITY else soft
