"""What Label Studio sends, as far as we read it, and what a prediction shall contain. Unknown keys are ignored."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from backend.errors import BadRequestError
from backend.settings import Settings
from integration.regions.settings import Output

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
    """`context` is set by interactive requests: the region somebody has just drawn."""

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
        """An object, or text that holds one; anything else is kept out without refusing the connection."""
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
        """Where something happened; None where the event does not say it."""
        number = self.project.get("id") if isinstance(self.project, dict) else None
        return number if type(number) is int and 0 < number < 10**18 else None


def parse(schema: type[Model], body: object) -> Model:
    """Validate a decoded JSON body."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        details = [f"{'.'.join(str(part) for part in e['loc']) or 'body'}: {e['msg']}" for e in error.errors()[:5]]
        raise BadRequestError(
            f"The request is not a valid {schema.__name__}: {'; '.join(details)}.",
            "The endpoints speak Label Studio 1.23's ML backend protocol.",
        ) from error


def output_settings(settings: Settings, extra_params: dict[str, Any] | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of `Output` for a project, and a warning for each extra parameter that is unknown or out of range.

    Extra parameters are what a team may type into Label Studio, e.g. {"score_threshold": 0.7}.
    """
    ours: dict[str, Any] = {
        **dataclasses.asdict(Output()),
        "score_threshold": settings.score_threshold,
        "tolerance_px": settings.tolerance_px,
        "max_vertices": settings.max_vertices or None,
    }
    warnings = []
    known = ", ".join(ours)
    for name, value in (extra_params or {}).items():
        if value is None:
            continue
        try:
            ours[name] = getattr(Output(**{name: value}), name)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            warnings.append(f"extra parameter {name}={str(value)[:80]!r} is ignored: {reason} (known: {known})")
    return ours, tuple(warnings)
