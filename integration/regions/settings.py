"""How predictions are drawn, what was left out, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from integration.label_studio.label_config import Kind
from model.instance import Instance

Share = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: (instances shown, instances hidden for their score) -> score of the whole prediction, 0..1; the lowest comes first.
Scorer = Callable[[Sequence[Instance], Sequence[Instance]], float]


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Output:
    """How predictions are drawn. Attributes of the label config's tags win over these.

    A value out of range is a `pydantic.ValidationError`, which names it.

    Attributes:
        kind: "auto": the first of `KINDS` that the label config has for the class; a kind: that one where the label
            config has it, else as "auto"; "all": every kind the label config has (ellipses only where no other is).
        holes: objects with holes as polygons with a "keyhole" cut, or as "brush" masks (bitmasks) where the config has
            them.
        max_vertices: most vertices of a polygon; the tolerance is raised to get there. None: no limit.
        min_area_px: parts and holes of polygons, and objects, smaller than this are left out. 0: masks are drawn as
            they are, whatever the two shares and `border_px` say.
        min_part_share: parts smaller than this share of the object's largest part are left out.
        min_hole_share: holes smaller than this share of the object's area are filled.
        border_px: masks that come this close to the border of the image go on to it.
        parts: "joined": an object is one polygon, its parts joined by cuts of no width, so that Label Studio counts it
            once; "separate": a polygon a part.
        outline: "smooth": polygons follow the probabilities between pixel centres; "pixels": the edges of pixels.
        double_iou: an object whose mask overlaps a better scored one more than this (IoU), of whatever class, is the
            same object and left out; 1 keeps all.
        part_cover: an object of which a better scored one of its class covers more than this share is a part of it and
            left out; 1 keeps all, as a double_iou of 1 does.
        shared_edges: whether polygons of objects that touch have one edge between them, without overlap or gap.
            Objects that overlap do not touch. A vertex budget changes each polygon by itself, so it goes first.
        max_regions: most objects of a control on an image, the best scores first.
    """

    kind: Kind | Literal["auto", "all"] = "auto"
    holes: Literal["keyhole", "brush"] = "keyhole"
    tolerance_px: Pixels = 1.0
    max_vertices: Annotated[int, Field(ge=3)] | None = None
    min_area_px: Pixels = 16.0
    min_part_share: Share = 0.01
    min_hole_share: Share = 0.01
    border_px: Annotated[int, Field(ge=0, le=16)] = 2
    parts: Literal["joined", "separate"] = "joined"
    outline: Literal["smooth", "pixels"] = "smooth"
    double_iou: Annotated[float, Field(gt=0, le=1)] = 0.6
    part_cover: Annotated[float, Field(gt=0, le=1)] = 0.9
    shared_edges: Annotated[bool, Field(strict=True)] = False
    max_regions: Annotated[int, Field(ge=1)] = 300
    score_threshold: Share = 0.0


#: How predictions were drawn before objects became one region each: a region a part, along the edges of pixels.
PART_BY_PART = Output(
    min_part_share=0.0, min_hole_share=0.0, border_px=0, parts="separate", outline="pixels", double_iou=1.0
)


class Reason(StrEnum):
    """Why an instance has no region."""

    NO_LABEL = "no label for its class"
    LOW_SCORE = "below the score threshold"
    OVER_LIMIT = "over the limit of regions"
    DOUBLE = "overlaps a better scored object too much"
    PART = "lies inside a better scored object of its class"
    TOO_SMALL = "smaller than the minimum area"
    NOT_A_NUMBER = "its score is not a number"


def certainty(instances: Sequence[Instance]) -> float:
    """The score of a whole prediction; Label Studio's uncertainty sampling shows the lowest first.

    An instance is as certain as its detection and its boundary: score * (1 - uncertainty). The image gets the mean
    of the average and of the worst instance: one bad object is found among many good ones, and many doubtful
    objects come before one. An image with nothing found gets 0: either it is empty, which is quickly confirmed, or
    the model is blind there, which is what it should learn first.
    """
    values = [min(max(i.score, 0.0), 1.0) * (1 - _unit(i.uncertainty)) for i in instances]
    if not values:
        return 0.0
    return round((sum(values) / len(values) + min(values)) / 2, 6)


def _unit(uncertainty: float) -> float:
    return min(max(uncertainty, 0.0), 1.0) if math.isfinite(uncertainty) else 1.0
