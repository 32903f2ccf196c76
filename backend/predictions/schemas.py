"""What Label Studio sends, as far as we read it, and what a prediction shall contain. Unknown keys are ignored."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any, Literal, TypeVar

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


def parse(schema: type[Model], body: object) -> Model:
    """Validate a decoded JSON body.

    Raises:
        BadRequestError: naming each offending field with what was expected.
    """
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        details = [f"{'.'.join(str(part) for part in e['loc']) or 'body'}: {e['msg']}" for e in error.errors()[:5]]
        raise BadRequestError(
            f"The request is not a valid {schema.__name__}: {'; '.join(details)}.",
            "The endpoints speak Label Studio 1.23's ML backend protocol.",
        ) from error


class OutputParams(BaseModel):
    """The extra parameters that a team may type into Label Studio, e.g. {"score_threshold": 0.7}."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["auto", "polygon", "brush", "bitmask", "vector", "rectangle", "ellipse", "all"] | None = None
    holes: Literal["keyhole", "brush"] | None = None
    score_threshold: float | None = Field(default=None, ge=0, le=1)
    tolerance_px: float | None = Field(default=None, ge=0)
    max_vertices: int | None = Field(default=None, ge=3)
    min_area_px: float | None = Field(default=None, ge=0)
    min_part_share: float | None = Field(default=None, ge=0, le=1)
    min_hole_share: float | None = Field(default=None, ge=0, le=1)
    border_px: int | None = Field(default=None, ge=0, le=16)
    parts: Literal["joined", "separate"] | None = None
    outline: Literal["smooth", "pixels"] | None = None
    double_iou: float | None = Field(default=None, gt=0, le=1)
    shared_edges: bool | None = None
    max_regions: int | None = Field(default=None, ge=1)


def output_settings(settings: Settings, extra_params: dict[str, Any] | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Fields of `Output` for a project, and a warning for each extra parameter that is unknown or out of range."""
    ours: dict[str, Any] = {
        **dataclasses.asdict(Output()),
        "score_threshold": settings.score_threshold,
        "tolerance_px": settings.tolerance_px,
        "max_vertices": settings.max_vertices or None,
    }
    warnings = []
    for name, value in (extra_params or {}).items():
        try:
            ours.update(OutputParams.model_validate({name: value}).model_dump(exclude_none=True))
        except ValidationError as error:
            known = ", ".join(OutputParams.model_fields)
            warnings.append(
                f"extra parameter {name}={str(value)[:80]!r} is ignored: {error.errors()[0]['msg']} (known: {known})"
            )
    return ours, tuple(warnings)
