"""What the last look at a project found, for pages."""

from __future__ import annotations

from typing import Any

from redis import Redis

from backend.connection import text


def looked_key(project: str) -> str:
    return f"transfiner:learning:{project}:looked"


def looked_at(connection: Redis, project: str) -> dict[str, Any]:
    """at (unix time), new (annotations newer than the newest snapshot), error; {} when nobody has looked yet."""
    row = {text(name): text(value) for name, value in connection.hgetall(looked_key(project)).items()}
    if not row:
        return {}
    return {"at": float(row["at"]), "new": int(row.get("new", 0)), "error": row.get("error", "")}
