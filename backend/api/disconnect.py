"""Whether the client of a request has closed its connection: nobody would read the answer."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

# Where servers leave the connection of a request: gunicorn, and werkzeug in tests.
SOCKETS = ("gunicorn.socket", "werkzeug.socket")


def client_disconnected(environ: Mapping[str, Any]) -> Callable[[], bool]:
    """Asks the connection of a WSGI request; always False under a server that does not show it."""
    connection = next((environ[name] for name in SOCKETS if name in environ), None)
    return (lambda: _is_closed(connection)) if isinstance(connection, socket.socket) else lambda: False


def _is_closed(connection: socket.socket) -> bool:
    """The other side has ended it: a read would give nothing. A pipelined request is something to read."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except (BlockingIOError, InterruptedError, ValueError):
        # Nothing to read, or an encrypted connection, which cannot be looked into.
        return False
    except OSError:
        return True
