"""What a prediction shall contain: our settings, overridden by the extra parameters of the ML backend in a project."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.settings import Settings
from integration.regions.settings import Output


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
