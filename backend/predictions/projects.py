"""Schemas of Label Studio's requests, and the projects saved from /setup: /predict has no address and no token.

Unknown keys are ignored.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from redis import Redis

from backend.errors import BadRequestError
from backend.queue.connection import text
from backend.queue.keys import PROJECT, PROJECTS
from backend.settings import Settings
from integration.label_studio.label_config import Output

Model = TypeVar("Model", bound=BaseModel)
LONGEST_EXTRA_PARAMS = 2**14
# The 1203 labels of LVIS take 60 kB. The queue server keeps label configs for days.
LONGEST_CONFIG = 2**18
# Label Studio's is "<id>.<created>".
PROJECT_KEY = r"^[A-Za-z0-9_.-]{0,64}$"


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore")


class TaskItem(_Request):
    """One task of a /predict."""

    id: int | Annotated[str, Field(max_length=256)] | None = None
    data: dict[str, Any]
    drafts: list[Any] = []
    annotations: list[Any] = []

    _lists = field_validator("drafts", "annotations", mode="before")(
        lambda value: value if isinstance(value, list) else []
    )


class PredictParams(_Request):
    """Parameters of /predict; interactive requests set `context`, the region somebody has just drawn."""

    context: dict[str, Any] | None = None


class PredictRequest(_Request):
    """POST /predict."""

    tasks: list[TaskItem]
    project: str = Field(default="", pattern=PROJECT_KEY)
    label_config: str = Field(default="", max_length=LONGEST_CONFIG)
    params: PredictParams = Field(default_factory=PredictParams)

    _project = field_validator("project", mode="before")(lambda value: "" if value is None else str(value))
    _config = field_validator("label_config", mode="before")(lambda value: value or "")
    _params = field_validator("params", mode="before")(lambda value: value or {})


class SetupRequest(_Request):
    """POST /setup. What it says is kept for long, so its size is limited."""

    project: str = Field(default="", pattern=PROJECT_KEY)
    label_config: str = Field(default="", alias="schema", max_length=LONGEST_CONFIG)
    hostname: str = Field(default="", max_length=2048)
    access_token: str = Field(default="", max_length=8192)
    extra_params: dict[str, Any] = Field(default_factory=dict)

    _texts = field_validator("project", "label_config", "hostname", "access_token", mode="before")(
        lambda value: "" if value is None else str(value)
    )

    @field_validator("extra_params", mode="before")
    @classmethod
    def _object(cls, value: object) -> object:
        """Accept an object, or text that holds one; drop anything else without refusing the connection."""
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except ValueError:
                return {"unreadable": str(value)[:200]}
        if len(json.dumps(value, default=str)) > LONGEST_EXTRA_PARAMS:
            raise ValueError(f"is longer than {LONGEST_EXTRA_PARAMS} characters")
        return value if isinstance(value, dict) else {}


class Event(_Request):
    """POST /webhook: a hint, never the truth.

    Events get lost when we are down, come twice after re-connecting, and anybody can forge them. So facts are read from
    Label Studio's API. Events of a later Label Studio are no error.
    """

    action: str = Field(min_length=1)
    project: Any = None

    @property
    def project_id(self) -> int | None:
        """Id of the event's project; None where the event has none."""
        number = self.project.get("id") if isinstance(self.project, dict) else None
        return number if type(number) is int and 0 < number < 10**18 else None


def parse(schema: type[Model], body: object) -> Model:
    """Validate a decoded JSON body."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        details = [
            f"{'.'.join(str(part) for part in problem['loc']) or 'body'}: {problem['msg']}"
            for problem in error.errors()[:5]
        ]
        raise BadRequestError(
            f"The request is not a valid {schema.__name__}: {'; '.join(details)}.",
            "The endpoints speak Label Studio 1.23's ML backend protocol.",
        ) from error


def output_settings(settings: Settings, extra_params: dict[str, Any] | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of `Output` for a project, and a warning for each extra parameter that is unknown or out of range.

    Extra parameters are what a team may type into Label Studio, e.g. {"score_threshold": 0.7}.
    """
    fields: dict[str, Any] = {
        **dataclasses.asdict(Output()),
        "score_threshold": settings.score_threshold,
        "tolerance_px": settings.tolerance_px,
        "max_vertices": settings.max_vertices or None,
    }
    warnings = []
    known_names = ", ".join(fields)
    for name, value in (extra_params or {}).items():
        if value is None:
            continue
        try:
            fields[name] = getattr(Output(**{name: value}), name)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            warnings.append(f"extra parameter {name}={str(value)[:80]!r} is ignored: {reason} (known: {known_names})")
    return fields, tuple(warnings)


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
        model_version: the version in our answer to /setup.
        reason: why nothing can be predicted for it, "" when something can.
        notice: the reason for Label Studio's pages, with what to do (integration.label_studio.notice).
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
        """Save a project for `LIFETIME_S`; the time of its last change is kept.

        A trusted address and token are kept, too: a later /setup with an untrusted address must not replace them.

        Raises:
            BadRequestError: there are `MOST_PROJECTS` others.
        """
        is_full = self.connection.scard(PROJECTS) >= MOST_PROJECTS and len(self.all()) >= MOST_PROJECTS
        if is_full and not self.connection.exists(PROJECT + project.key):
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
            pipe.hset(PROJECT + project.key, mapping={name: json.dumps(value) for name, value in facts.items()})
            pipe.expire(PROJECT + project.key, LIFETIME_S)
            pipe.sadd(PROJECTS, project.key)
            pipe.execute()

    def get(self, key: str) -> Project:
        """The project of a key, or an empty one when it never called /setup."""
        row: Any = self.connection.hgetall(PROJECT + key)
        return _project(key, row)

    def all_keys(self) -> list[str]:
        """Keys of all projects, in order."""
        return sorted(text(member) for member in self.connection.smembers(PROJECTS))

    def all(self) -> list[Project]:
        """All projects by key; expired ones are removed from the list."""
        keys = self.all_keys()
        with self.connection.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hgetall(PROJECT + key)
            rows = pipe.execute()
        if expired_keys := [key for key, row in zip(keys, rows, strict=True) if not row]:
            self.connection.srem(PROJECTS, *expired_keys)
        return [_project(key, row) for key, row in zip(keys, rows, strict=True) if row]

    def newest(self) -> list[Project]:
        """The `MOST_SHOWN` that sent /setup last, by key; for pages, which must stay fast however many there are."""
        keys = self.all_keys()
        with self.connection.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hget(PROJECT + key, "seen_at")
            seen_at = dict(zip(keys, (float(moment or 0) for moment in pipe.execute()), strict=True))
        newest_keys = sorted(keys, key=seen_at.__getitem__, reverse=True)[:MOST_SHOWN]
        return [project for key in sorted(newest_keys) if (project := self.get(key)).seen_at]

    def touch(self, project_id: int | str) -> None:
        """Note that something changed in a project; events name it by id only and may come twice or not at all."""
        for member in self.connection.smembers(PROJECTS):
            is_known = text(member).partition(".")[0] == str(project_id)
            if is_known and self.connection.exists(PROJECT + text(member)):
                self.connection.hset(PROJECT + text(member), "changed_at", json.dumps(time.time()))


def _project(key: str, row: Mapping[bytes, bytes]) -> Project:
    facts = {text(name): json.loads(value) for name, value in row.items()}
    facts["warnings"] = tuple(facts.get("warnings", ()))
    fields = {name: value for name, value in facts.items() if name in Project.__dataclass_fields__}
    return replace(Project(key=key), **fields)
