"""The objects in a submitted result: only outlines of the project's own controls, each object once.

A result also holds what is no outline: choices about the whole image, texts about a region, relations. A project with
several kinds of outlines (or `Output.kind == "all"`) holds objects twice: the finer outline counts.

Shapes: H, W mask size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from integration.annotations import AnnotatedObject, AnnotationError, regions_to_objects
from integration.label_config import LabelConfig
from model.mask_overlap import box_of, iou

#: Coarser kinds last.
_FINEST_FIRST = ("brush", "polygon", "rectangle")
_OUTLINES = ("polygon", "brush", "rectangle", "polygonlabels", "brushlabels", "rectanglelabels", "labels")
#: An object is drawn twice when drawings of two kinds overlap this much.
_TWICE_IOU = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Drawings:
    """The objects of one result.

    Attributes:
        objects: in the order of the result.
        left_out: id and reason of every region that is no object.
        unreadable: how many of those are broken outlines, so that an object may be missing.
    """

    objects: tuple[AnnotatedObject, ...]
    left_out: tuple[tuple[str, str], ...]
    unreadable: int = 0


def read_drawings(
    result: Sequence[Mapping[str, Any]],
    *,
    width: int,
    height: int,
    config: LabelConfig | None = None,
    labels: Sequence[str] | None = None,
) -> Drawings:
    """Read the objects of an annotation's or a prediction's result.

    Args:
        result: its entries.
        width: of the upright image.
        height: of the upright image.
        config: the label config; entries of controls that it does not have are left out. None: any outline counts.
        labels: labels that count; None: the config's, or all.
    """
    ours, left_out = _of_controls(result, config)
    try:
        decoded = regions_to_objects(ours, width=width, height=height)
    except AnnotationError as error:
        broken = tuple((str(entry.get("id", "")), str(error)) for entry in ours)
        return Drawings((), (*left_out, *broken), len(broken))
    left_out += decoded.skipped
    objects = []
    allowed = labels if labels is not None else config.labels if config else None
    for drawn in decoded.objects:
        if allowed is None or drawn.label in allowed:
            objects.append(drawn)
        else:
            left_out += _reasons(drawn, f"label {drawn.label!r} is not among the labels of the project")
    doubles = _doubles(objects)
    for number, kept in doubles.items():
        left_out += _reasons(objects[number], f"the same object is drawn as {objects[kept].kinds[0]}")
    kept_objects = tuple(drawn for number, drawn in enumerate(objects) if number not in doubles)
    return Drawings(kept_objects, tuple(left_out), len(decoded.skipped))


def is_box(drawn: AnnotatedObject) -> bool:
    """Whether only a box was drawn, so that its mask says nothing about the outline."""
    return all(kind == "rectangle" for kind in drawn.kinds)


def _of_controls(
    result: Sequence[Mapping[str, Any]], config: LabelConfig | None
) -> tuple[list[Mapping[str, Any]], list[tuple[str, str]]]:
    names = {name for c in config.controls for name in (c.name, c.labels_name)} if config else None
    ours, others = [], []
    for entry in result:
        if entry.get("type") == "relation":
            continue
        name, kind = entry.get("from_name"), entry.get("type")
        if (name in names) if names is not None else (kind in _OUTLINES):
            ours.append(entry)
        else:
            others.append(entry)
    known = {entry.get("id") for entry in ours}
    # Texts and ratings about an object have the id of its region: nothing is lost with those.
    return ours, [
        (
            str(entry.get("id", "")),
            f"control {entry.get('from_name')!r} ({entry.get('type')}) outlines nothing",
        )
        for entry in others
        if entry.get("id") not in known
    ]


def _reasons(drawn: AnnotatedObject, reason: str) -> list[tuple[str, str]]:
    return [(region_id, reason) for region_id in drawn.region_ids]


def _doubles(objects: Sequence[AnnotatedObject]) -> dict[int, int]:
    """Numbers of objects that are drawn in a finer kind as well, with the number of that one."""
    by_rank = sorted(range(len(objects)), key=lambda n: _rank(objects[n]))
    doubles: dict[int, int] = {}
    for place, number in enumerate(by_rank):
        for finer in by_rank[:place]:
            if finer not in doubles and _is_same(objects[finer], objects[number]):
                doubles[number] = finer
                break
    return doubles


def _rank(drawn: AnnotatedObject) -> int:
    return min(_FINEST_FIRST.index(kind) for kind in drawn.kinds)


def _is_same(finer: AnnotatedObject, coarser: AnnotatedObject) -> bool:
    if finer.label != coarser.label or _rank(finer) == _rank(coarser):
        return False
    mask_hw = _filled_box(finer.mask_hw) if is_box(coarser) else finer.mask_hw
    return iou(mask_hw, coarser.mask_hw) >= _TWICE_IOU


def _filled_box(mask_hw: np.ndarray) -> np.ndarray:
    filled = np.zeros_like(mask_hw)
    left, top, right, bottom = box_of(mask_hw)
    filled[top:bottom, left:right] = True
    return filled
