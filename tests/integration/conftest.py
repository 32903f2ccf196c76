"""A real HTTP server on a free loopback port, whose pages each test decides."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes depends on what else the machine does; no test here is about time.
settings.register_profile("integration", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("integration")


@dataclass
class Seen:
    """One request that the server got."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> object:
        return json.loads(self.body)


Page = Callable[[Seen, BaseHTTPRequestHandler], None]


@dataclass
class Loopback:
    """Pages by path; `requests` holds what was asked."""

    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[Seen] = field(default_factory=list)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def give(
        self, path: str, body: bytes | object = b"", status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        """Answer every request for a path in the same way; objects become JSON."""
        self.pages[path] = lambda request, handler: send(handler, body, status, headers)


def send(
    handler: BaseHTTPRequestHandler, body: bytes | object, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    handler.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def _handler_for(server: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Seen(self.command, parts.path, parse_qs(parts.query), dict(self.headers), body)
            server.requests.append(request)
            page = server.pages.get(parts.path)
            try:
                if page is None:
                    send(self, {"detail": "Not found."}, 404)
                else:
                    page(request, self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client had enough: that is what some tests are about

        do_GET = do_POST = do_PATCH = _answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of some tests; everything else is shown as usual."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@pytest.fixture
def make_loopback() -> Iterator[Callable[[], Loopback]]:
    """Start as many servers as a test wants."""
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def make() -> Loopback:
        loopback = Loopback("")
        server = _Server(("127.0.0.1", 0), _handler_for(loopback))
        loopback.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return loopback

    yield make
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def loopback(make_loopback: Callable[[], Loopback]) -> Loopback:
    return make_loopback()


@pytest.fixture
def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
