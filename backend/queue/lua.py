"""Lua scripts of the queue: each moves tasks between states in one atomic step (backend/queue/scripts/*.lua)."""

from __future__ import annotations

from importlib.resources import files

from redis import Redis
from redis.commands.core import Script


def load_script(connection: Redis, name: str) -> Script:
    """Load `scripts/<name>.lua`, whose first lines say what KEYS and ARGV are."""
    source = files("backend.queue").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")
    return connection.register_script(source)
