"""The objects in submitted results: outlines of the project's controls, each once; what several annotators agree on.

A result also holds what is no outline: choices about the whole image, texts about a region, relations. A project with
several kinds of outlines (or `Output.kind == "all"`) holds objects twice: the finer outline counts.

Objects of different annotators are the same when their masks overlap (IoU); the closest pairs are joined first, and an
object joins at most one of each annotator. More than half of the annotators must have drawn it, and more than half of
those must have labelled it alike.

Shapes: H, W mask size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from integration.label_studio.label_config import LabelConfig
from integration.regions.read import (
    GEOMETRIES,
    AnnotatedObject,
    AnnotationError,
    extent_of,
    painted_size,
    regions_to_objects,
)
from model.instance import box_of, iou, iou_matrix

#: Coarser kinds last.
_FINEST_FIRST = ("brush", "bitmask", "polygon", "vector", "ellipse", "rectangle")
_OUTLINES = (*GEOMETRIES, *(f"{kind}labels" for kind in GEOMETRIES), "labels")
#: What is said about an image: nothing of it is lost.
_WITHOUT_PLACE = ("choices", "taxonomy", "rating", "textarea", "number", "datetime", "pairwise")
#: An object is drawn twice when drawings of two kinds overlap this much.
_TWICE_IOU = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Drawings:
    """The objects of one result.

    Attributes:
        left_out: id and reason of every region that is no object.
        ignored: what was drawn but cannot be learned from, with the pixels that it may cover: neither object nor
            background.
        nowhere: how many broken outlines have no known place, so that nothing in the image is known to be background.
        notes: id and text of what was read otherwise than it may have been meant; nothing is lost with these.
        turned: what is wrong where outlines were drawn on the image turned by a quarter; "" where they were not.
    """

    objects: tuple[AnnotatedObject, ...]
    left_out: tuple[tuple[str, str], ...]
    ignored: tuple[AnnotatedObject, ...] = ()
    nowhere: int = 0
    notes: tuple[tuple[str, str], ...] = ()
    turned: str = ""


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
        config: the label config; entries of controls that it does not have are left out. None: any outline counts.
        labels: labels that count; None: the config's, or all.
    """
    ours, left_out, notes = _of_controls(result, config)
    try:
        decoded = regions_to_objects(ours, width=width, height=height)
    except AnnotationError as error:
        broken = tuple((str(entry.get("id", "")), str(error)) for entry in ours)
        return Drawings((), (*left_out, *broken), nowhere=len(broken))
    left_out += decoded.skipped
    notes += decoded.notes
    objects: list[AnnotatedObject] = []
    ignored: list[AnnotatedObject] = []
    nowhere = 0
    for region_id, _ in decoded.skipped:
        entries = [entry for entry in ours if str(entry.get("id") or "") == region_id]
        extents = [extent for entry in entries if (extent := extent_of(entry, width, height)) is not None]
        anywhere = np.any(extents, axis=0) if extents else np.zeros(0)
        if anywhere.any():
            ignored.append(AnnotatedObject("", anywhere, (region_id,), ("unreadable",)))
        elif not extents:
            nowhere += 1
    own = _own_ids(result, config)
    allowed = labels if labels is not None else config.labels if config else None
    for drawn in decoded.objects:
        if allowed is None or drawn.label in allowed:
            objects.append(drawn)
        else:
            left_out += _reasons(drawn, f"label {drawn.label!r} is not among the labels of the project")
            # A box of another control is a region of interest or the like, no object of ours.
            if own is None or drawn.region_ids[0] in own or not is_box(drawn):
                ignored.append(drawn)
    doubles = _doubles(objects)
    for number, kept in doubles.items():
        notes += _reasons(objects[number], f"the same object is drawn as {objects[kept].kinds[0]}")
    kept_objects = tuple(drawn for number, drawn in enumerate(objects) if number not in doubles)
    turned, resized = _of_another_shape(ours, width, height)
    notes += [resized] if resized else []
    return Drawings(kept_objects, tuple(left_out), tuple(ignored), nowhere, tuple(notes), turned)


def _of_another_shape(
    entries: Sequence[Mapping[str, Any]], width: int, height: int
) -> tuple[str, tuple[str, str] | None]:
    """How the image that was drawn on differs in shape: the reason where it was turned, else a note, for the first one.

    Coordinates are percentages, so that a size that is wrong, as scripts write it, does no harm; a turn does.
    """
    for entry in entries:
        rows, columns = painted_size(entry) or (height, width)
        rounding = max(width + height, rows + columns)  # a side of a scaled image may be a pixel longer or shorter
        if abs(rows * width - columns * height) <= rounding:
            continue
        said = f"drawn on an image of {columns} x {rows} pixels, which is no size of this one of {width} x {height}"
        if abs(columns * width - rows * height) <= rounding:
            return f"it was {said}: it was turned", None
        return "", (str(entry.get("id") or ""), f"{said}: its percentages are taken of this one")
    return "", None


def is_box(drawn: AnnotatedObject) -> bool:
    """Whether only a box was drawn, so that its mask says nothing about the outline."""
    return all(kind == "rectangle" for kind in drawn.kinds)


def _of_controls(
    result: Sequence[Mapping[str, Any]], config: LabelConfig | None
) -> tuple[list[Mapping[str, Any]], list[tuple[str, str]], list[tuple[str, str]]]:
    """The entries that outline objects of this image, what is lost with the others, and what is not."""
    names = {name for c in config.controls for name in (c.name, c.labels_name)} if config else None
    image = config.controls[0].to_name if config else None
    ours, others, elsewhere = [], [], []
    for entry in result:
        if entry.get("type") == "relation":
            continue
        name, kind = str(entry.get("from_name")), str(entry.get("type"))
        if (image and entry.get("to_name", image) != image) or entry.get("item_index") not in (None, 0):
            elsewhere.append(entry)
        elif (names is not None and name in names) or kind in _OUTLINES:
            ours.append(entry)
        else:
            others.append(entry)
    known = {str(entry.get("id")) for entry in ours}
    left_elsewhere = {
        str(entry.get("id", "")): f"it is of another image: {entry.get('to_name')!r}, item {entry.get('item_index', 0)}"
        for entry in elsewhere
    }
    left_out, notes = [*left_elsewhere.items()], list[tuple[str, str]]()
    for entry in others:
        if str(entry.get("id")) in known:  # a text or a rating about an object has the id of its region
            continue
        reason = f"control {entry.get('from_name')!r} ({entry.get('type')}) outlines nothing"
        is_text = str(entry.get("type")) in _WITHOUT_PLACE
        (notes if is_text else left_out).append((str(entry.get("id", "")), reason))
    return ours, left_out, notes


def _own_ids(result: Sequence[Mapping[str, Any]], config: LabelConfig | None) -> set[str] | None:
    """Ids of regions of the config's own controls; None without a config."""
    if config is None:
        return None
    names = {name for control in config.controls for name in (control.name, control.labels_name)}
    return {str(entry.get("id") or "") for entry in result if str(entry.get("from_name")) in names}


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


SAME_IOU = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Consensus:
    """The objects of an image after a vote.

    Attributes:
        objects: what the majority drew. Each pixel follows the majority of those who drew the object, in a tie the
            latest of them; label ids and kinds are of that one too.
        disputed: what no majority drew, or not with one label: neither an object nor background.
    """

    objects: tuple[AnnotatedObject, ...]
    disputed: tuple[AnnotatedObject, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    annotator: int
    drawn: AnnotatedObject


def vote(drawings: Sequence[Sequence[AnnotatedObject]], *, same_iou: float = SAME_IOU) -> Consensus:
    """Vote on the objects of one image.

    Args:
        drawings: the objects of each annotator, whoever submitted last in the last place; masks of one size.
        same_iou: least IoU of two drawings of one object.
    """
    everything = [_Drawn(a, drawn) for a, drawings_of in enumerate(drawings) for drawn in drawings_of]
    objects, disputed = [], []
    for group in _groups(everything, same_iou):
        label, votes = Counter(shape.drawn.label for shape in group).most_common(1)[0]
        if 2 * len(group) > len(drawings) and 2 * votes > len(group):
            objects.append(_united(group, label))
        else:
            disputed.append(group[-1].drawn)
    return Consensus(tuple(objects), tuple(disputed))


def _groups(everything: Sequence[_Drawn], same_iou: float) -> list[list[_Drawn]]:
    """Objects that are one, each group by annotator (the latest last), groups by their first object."""
    masks = [shape.drawn.mask_hw for shape in everything]
    overlaps = iou_matrix(masks, masks)
    pairs = []
    for i, k in combinations(range(len(everything)), 2):
        shape, other = everything[i], everything[k]
        if shape.annotator != other.annotator and overlaps[i, k] >= same_iou:
            pairs.append((-overlaps[i, k], i, k))
    group_of = {i: [i] for i in range(len(everything))}
    for _, i, k in sorted(pairs):
        here, there = group_of[i], group_of[k]
        annotators = [everything[n].annotator for n in here + there]
        if here is not there and len(set(annotators)) == len(annotators):
            here += there
            group_of |= dict.fromkeys(there, here)
    distinct = {id(group): group for group in group_of.values()}
    return [sorted((everything[n] for n in group), key=lambda shape: shape.annotator) for group in distinct.values()]


def _united(group: Sequence[_Drawn], label: str) -> AnnotatedObject:
    votes = np.sum([shape.drawn.mask_hw for shape in group], axis=0, dtype=np.int32) * 2
    latest = group[-1].drawn
    mask_hw = (votes > len(group)) | ((votes == len(group)) & latest.mask_hw)
    return replace(latest, label=label, mask_hw=mask_hw if mask_hw.any() else latest.mask_hw)
