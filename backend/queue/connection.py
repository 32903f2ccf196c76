"""Connections to the Redis-protocol server, for the API and for workers, and its scripts (scripts/*.lua)."""

from __future__ import annotations

import time
from importlib.resources import files
from urllib.parse import urlsplit

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from backend.errors import StartError
from backend.settings import Settings

# A worker gives up on a queue server that answers no command for this long, in s.
WORKER_TIMEOUT_S = 10
RETRY_S = 0.5


def web_connection(settings: Settings, timeout_s: float | None = None) -> Redis:
    """A connection for the API, where somebody waits: it gives up within `redis_timeout_s` (or `timeout_s`)."""
    limit_s = settings.redis_timeout_s if timeout_s is None else timeout_s
    return Redis.from_url(
        _url(settings),
        socket_timeout=limit_s,
        socket_connect_timeout=limit_s,
        # One retry at once when the connection was lost (the server restarted), none after a timeout.
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        health_check_interval=30,
        decode_responses=False,
    )


def worker_connection(settings: Settings) -> Redis:
    """A connection for workers, which wait for the queue server themselves.

    No command is repeated: the script that takes tasks would take more, and the first ones would be lost.
    """
    return Redis.from_url(
        _url(settings),
        socket_timeout=WORKER_TIMEOUT_S,
        socket_connect_timeout=5,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=30,
    )


def require_queue_server(connection: Redis, settings: Settings) -> None:
    """Wait until the queue server answers; for the start of a process that needs it.

    Raises:
        StartError: no answer within `redis_start_s`.
    """
    until = time.monotonic() + settings.redis_start_s
    attempts = 0
    while True:
        attempts += 1
        try:
            connection.ping()
            return
        except RedisError as error:
            if time.monotonic() >= until:
                url = urlsplit(_url(settings))
                place = url.path if url.scheme == "unix" else f"{url.hostname}:{url.port or 6379}"
                raise StartError(
                    f"No queue server answers at {place}: {attempts} attempts in {settings.redis_start_s:g} s, "
                    f"the last one ended with {type(error).__name__}: {error}",
                    "Start the server, correct --redis-url (TRANSFINER_REDIS_URL), "
                    "or use `transfiner serve` without it, which starts one.",
                ) from error
        time.sleep(RETRY_S)


def load_script(connection: Redis, name: str) -> Script:
    """Load `scripts/<name>.lua`, one atomic change of state; its first lines describe KEYS and ARGV."""
    source = files("backend.queue").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")
    return connection.register_script(source)


def text(value: bytes | str | None) -> str:
    """Decode an answer of Redis; "" for nothing."""
    return value.decode() if isinstance(value, bytes) else value or ""


def _url(settings: Settings) -> str:
    if not settings.redis_url:
        raise StartError(
            "No queue server: TRANSFINER_REDIS_URL is empty.",
            "Use `transfiner serve`, which starts one, or give --redis-url redis://HOST:6379/0.",
        )
    return settings.redis_url
