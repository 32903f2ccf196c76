"""Faults of a service: a network link that can be cut, and a wall clock that can be stepped.

`python -m backend.devtools.breakable FILE MODULE ARGUMENTS` runs a module on the clock of a file.
"""

from __future__ import annotations

import contextlib
import mmap
import runpy
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from redis import Redis

BLOCK = 2**16


class Link:
    """A proxy to a server of this machine, which can be cut or held.

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
        """Reset all connections and refuse new ones inside the `with` block."""
        self._is_cut = True
        self._end_connections()
        try:
            yield
        finally:
            self._is_cut = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold all data back inside the `with` block, as when a cable is pulled; it arrives later."""
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
            for connection in self._sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                if self._is_cut:
                    raise ConnectionError("the link is cut")
                server = socket.create_connection(self.target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Copy one direction of a connection; the direction that ends first ends both."""
        with contextlib.suppress(OSError):
            while block := source.recv(BLOCK):
                self._flows.wait()
                sink.sendall(block)
        for connection in (source, sink):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sockets.discard(source)
        source.close()


OFFSET = struct.Struct("d")
# Shortens all lifetimes at once, as a server sees it whose clock steps forward.
STEP_LIFETIMES = """
for _, key in ipairs(redis.call('KEYS', '*')) do
  local left = redis.call('PTTL', key)
  if left >= 0 then redis.call('PEXPIRE', key, left - tonumber(ARGV[1])) end
end
"""


class SteppedClock:
    """The offset of the clocks of all processes of a harness, in a file that they share."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.offset_s = 0.0
        file.write_bytes(OFFSET.pack(0.0))

    def step(self, seconds: float, connection: Redis) -> None:
        """Step the clocks of all processes that `follow` the file, and the queue server's, forward (or back)."""
        self.offset_s += seconds
        with self.file.open("r+b") as stream:
            stream.write(OFFSET.pack(self.offset_s))
        connection.eval(STEP_LIFETIMES, 0, int(seconds * 1000))


def follow(file: Path) -> None:
    """Make `time.time` of this process follow a stepped clock."""
    true_time = time.time
    with file.open("rb") as stream:
        offset = mmap.mmap(stream.fileno(), OFFSET.size, access=mmap.ACCESS_READ)
    time.time = lambda: true_time() + float(OFFSET.unpack(offset[:])[0])


if __name__ == "__main__":
    follow(Path(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__")
