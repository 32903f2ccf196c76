"""Clients that begin a request and never end it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests

# What a client sends and then stays silent; 48 threads answer requests.
UNFINISHED = {
    "nothing": b"",
    "half a header": b"GET /health HTTP/1.1\r\nHost: x\r\nX-",
    "a body that never comes": b"POST /setup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000000\r\n\r\n{",
    "a body in parts that never ends": b"POST /setup HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
}


@contextlib.contextmanager
def connections(address: str, count: int, *, source: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    parts = urlsplit(address)
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((parts.hostname, parts.port), 60, (source, 0)))
            for _ in range(count)
        ]


def is_closed(client: socket.socket) -> bool:
    """The server has closed it, whatever it said before."""
    client.setblocking(False)
    try:
        while client.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=60).status_code == 200
    except requests.ConnectionError:
        return False
