"""What Label Studio told us about each project with /setup: /predict carries neither address nor token."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from redis import Redis

from backend.errors import BadRequestError
from backend.queue.connection import text
from backend.queue.keys import PROJECTS, project_key

# A project that has sent no /setup for this long, in s, is forgotten.
LIFETIME_S = 90 * 24 * 3600
# Anybody may send a /setup: together they take a quarter of the queue server's memory at most.
MOST_PROJECTS = 1000
# Pages show the newest ones.
MOST_SHOWN = 50


@dataclass(frozen=True)
class Project:
    """One Label Studio project.

    Attributes:
        key: "<id>.<created unix>", as Label Studio names it to us.
        hostname: address of Label Studio as it sees itself; may be useless from another container.
        token: legacy token of the project's creator; a secret. Refused by servers with legacy tokens off.
        model_version: what our answer to /setup was.
        reason: why nothing can be predicted for it, "" when something can.
        notice: the same for Label Studio's pages, with what to do (integration.label_studio.notice).
        is_believed: whether `hostname` and `token` may be used, see backend.api.access.
        changed_at: unix time of the last webhook event, which only says "look now".
    """

    key: str
    hostname: str = ""
    token: str = ""
    label_config: str = ""
    model_version: str = ""
    reason: str = ""
    notice: str = ""
    warnings: tuple[str, ...] = ()
    extra_params: dict[str, Any] | None = None
    is_believed: bool = True
    seen_at: float = 0.0
    changed_at: float = 0.0

    @property
    def id(self) -> str:
        return self.key.partition(".")[0]

    def public(self) -> dict[str, Any]:
        """For status pages: everything but the secret."""
        facts = {name: value for name, value in vars(self).items() if name not in ("token", "label_config")}
        return {**facts, "has_token": bool(self.token)}


class Projects:
    """All projects, in Redis; lost ones come back with their next /setup."""

    def __init__(self, connection: Redis) -> None:
        self.connection = connection

    def save(self, project: Project) -> None:
        """Remember a project for `LIFETIME_S`; the time of its last change survives.

        So does a Label Studio that is believed: one that is not must not cut a project off from it.

        Raises:
            BadRequestError: there are `MOST_PROJECTS` others.
        """
        is_full = self.connection.scard(PROJECTS) >= MOST_PROJECTS and len(self.all()) >= MOST_PROJECTS
        if is_full and not self.connection.exists(project_key(project.key)):
            raise BadRequestError(
                f"There are {MOST_PROJECTS} projects already.",
                f"Those that send no /setup for {LIFETIME_S // 86400} days are forgotten.",
                status=409,
            )
        if not project.is_believed and (before := self.get(project.key)).hostname and before.is_believed:
            project = replace(project, hostname=before.hostname, token=before.token, is_believed=True)
        facts = {**vars(project), "warnings": list(project.warnings), "seen_at": time.time()}
        del facts["changed_at"]
        with self.connection.pipeline() as pipe:
            pipe.hset(project_key(project.key), mapping={name: json.dumps(value) for name, value in facts.items()})
            pipe.expire(project_key(project.key), LIFETIME_S)
            pipe.sadd(PROJECTS, project.key)
            pipe.execute()

    def get(self, key: str) -> Project:
        """The project, or an empty one when it never called /setup."""
        row: Any = self.connection.hgetall(project_key(key))
        return _project(key, row)

    def all_keys(self) -> list[str]:
        """Keys of all projects, in order."""
        return sorted(text(member) for member in self.connection.smembers(PROJECTS))

    def all(self) -> list[Project]:
        """All projects by key; those whose time is over are forgotten."""
        keys = self.all_keys()
        with self.connection.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(project_key(key))
            rows = pipe.execute()
        if gone := [key for key, row in zip(keys, rows, strict=True) if not row]:
            self.connection.srem(PROJECTS, *gone)
        return [_project(key, row) for key, row in zip(keys, rows, strict=True) if row]

    def newest(self) -> list[Project]:
        """The `MOST_SHOWN` that sent /setup last, by key; for pages, which must stay fast however many there are."""
        keys = self.all_keys()
        with self.connection.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hget(project_key(key), "seen_at")
            seen_at = dict(zip(keys, (float(moment or 0) for moment in pipe.execute()), strict=True))
        shown = sorted(keys, key=seen_at.__getitem__, reverse=True)[:MOST_SHOWN]
        return [project for key in sorted(shown) if (project := self.get(key)).seen_at]

    def touch(self, project_id: int | str) -> None:
        """Note that something changed in a project; events name it by id alone and may come doubled or not at all."""
        for member in self.connection.smembers(PROJECTS):
            is_known = text(member).partition(".")[0] == str(project_id)
            if is_known and self.connection.exists(project_key(text(member))):
                self.connection.hset(project_key(text(member)), "changed_at", json.dumps(time.time()))


def _project(key: str, row: Mapping[bytes, bytes]) -> Project:
    facts = {text(name): json.loads(value) for name, value in row.items()}
    facts["warnings"] = tuple(facts.get("warnings", ()))
    known = {name: value for name, value in facts.items() if name in Project.__dataclass_fields__}
    return replace(Project(key=key), **known)
