"""The `worker-alive` command: a probe for containers, since a worker serves no port."""

from __future__ import annotations

import socket
import sys

import click
from redis import Redis, RedisError

from backend.orphans import living_workers
from backend.settings import load_settings


@click.command("worker-alive")
@click.option("--redis-url", help="Queue server (TRANSFINER_REDIS_URL).")
@click.option("--host", help="Name of the worker's host; this one's if not given.")
def worker_alive(redis_url: str | None, host: str | None) -> None:
    """Say by the exit code whether a worker of this host gives signs of life.

    \b
    Example: transfiner worker-alive
    """
    settings = load_settings(redis_url=redis_url)
    host = host or socket.gethostname()
    try:
        with Redis.from_url(settings.redis_url, socket_timeout=5, socket_connect_timeout=5) as connection:
            workers = living_workers(connection)
    except (RedisError, ValueError) as error:
        # Killing the worker would not bring the queue server back; the worker waits for it with its model loaded.
        click.echo(f"The queue server does not answer ({type(error).__name__}); nothing is known.")
        return
    alive = [name for name, facts in workers.items() if facts.get("host") == host]
    click.echo(f"{', '.join(alive)} on {host}" if alive else f"No worker of {host} gives signs of life.")
    sys.exit(0 if alive else 1)
