"""A network that can be cut: forwards connections to a server until it is told not to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

BLOCK = 2**16


class Link:
    """Another address of a server of this machine.

    Args:
        target: host and port of the server, which may come and go.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self._flows = threading.Event()
        self._flows.set()
        self._is_cut = False
        self._is_closed = False
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, name="link", daemon=True).start()

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """While inside, every connection is reset and none comes about."""
        self._is_cut = True
        self._end_connections()
        try:
            yield
        finally:
            self._is_cut = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While inside, connections stay and nothing passes, as when a cable is pulled; what was sent comes later."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    def close(self) -> None:
        """End all connections for good."""
        self._is_closed = self._is_cut = True
        self._flows.set()
        # Wakes the thread that accepts.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._end_connections()

    def _end_connections(self) -> None:
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                if self._is_cut:
                    raise ConnectionError("the link is cut")
                far = socket.create_connection(self.target, timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._sockets |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """One direction of a connection; the one that ends first ends both."""
        with contextlib.suppress(OSError):
            while block := source.recv(BLOCK):
                self._flows.wait()
                sink.sendall(block)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sockets.discard(source)
        source.close()
