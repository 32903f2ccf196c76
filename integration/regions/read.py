"""The objects in submitted results: outlines of the project's controls, each once; what several annotators agree on.

`parentID` joins the parts of one object. A result also holds what is no outline: choices about the whole image, texts
about a region, relations. A project with several kinds of outlines (or `Output.kind == "all"`) holds objects twice: the
finer outline counts.

Objects of different annotators are the same when their masks overlap (IoU); the closest pairs are joined first, and an
object joins at most one of each annotator. More than half of the annotators must have drawn it, and more than half of
those must have labelled it alike.

Shapes: H, W mask size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from integration.label_studio.label_config import LabelConfig
from integration.regions.shapes import GEOMETRIES, ShapeError, extent_of, mask_of
from model.instance import box_of, iou, iou_matrix

#: Larger sizes in a region are taken for nonsense: the masks would not fit any memory.
MAX_PIXELS = 200_000_000
_LABEL_TYPES = ("labels", "choices")


class AnnotationError(ValueError):
    """A result whose image size is not known or not credible."""


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedObject:
    """One object that somebody drew.

    Attributes:
        mask_hw: bool, H x W; all parts together.
        region_ids: the parts, the one without a parent first.
        kinds: "polygon", "brush", "bitmask", "rectangle" of each part.
        score: of the prediction that the first part came from; None for parts drawn by hand.
    """

    label: str
    mask_hw: np.ndarray
    region_ids: tuple[str, ...]
    kinds: tuple[str, ...]
    score: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A result as objects.

    Attributes:
        skipped: id and reason of each region that is no object.
        notes: id and text of what was read otherwise than it may have been meant.
    """

    objects: tuple[AnnotatedObject, ...]
    skipped: tuple[tuple[str, str], ...]
    width: int
    height: int
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class _Region:
    """The entries of a result with one id: a geometry, and its label in the same or another entry."""

    id: str
    kind: str = ""
    value: Mapping[str, Any] | None = None
    label: str = ""
    parent_id: str = ""
    score: float | None = None
    painted_hw: tuple[int, int] | None = None


def regions_to_objects(
    result: Sequence[Mapping[str, Any]], *, width: int | None = None, height: int | None = None
) -> Decoded:
    """Rasterise the regions of an annotation or a prediction.

    Args:
        result: `annotation.result` of webhooks, API and JSON export, or `prediction.result`.
        width: of the upright image; by default `original_width` of the regions, which is right in everything that
            the editor has saved (it rewrites wrong ones) but not in hand-made predictions.

    Returns:
        Objects and skipped regions. Relations are neither. A child with another label than its parent is an object
        of its own.

    Raises:
        AnnotationError: there are regions but no believable size.
    """
    entries = [entry for entry in result if isinstance(entry, Mapping) and entry.get("type") != "relation"]
    width, height = _size(entries, width, height)
    notes: list[tuple[str, str]] = []
    regions = _gather(entries, notes)
    parts_by_object: dict[tuple[str, str], list[tuple[_Region, np.ndarray]]] = {}
    skipped = []
    for region in regions.values():
        try:
            mask_hw = _mask(region, width, height)
        except ShapeError as error:
            skipped.append((region.id, str(error)))
            continue
        parts_by_object.setdefault((_root(region, regions), region.label), []).append((region, mask_hw))
    objects = tuple(_object(parts) for parts in parts_by_object.values())
    return Decoded(objects, tuple(skipped), width, height, tuple(notes))


def _size(entries: Sequence[Mapping[str, Any]], width: int | None, height: int | None) -> tuple[int, int]:
    if width is None or height is None:
        sizes = ((entry.get("original_width"), entry.get("original_height")) for entry in entries)
        width, height = next((size for size in sizes if all(isinstance(length, int) for length in size)), (0, 0))
    if not (width and height and 0 < width * height <= MAX_PIXELS and width > 0):
        if not entries:
            return 0, 0
        raise AnnotationError(
            f"regions of an image of {width} x {height} pixels, expected 1 to {MAX_PIXELS} pixels; give the size of "
            "the image, or correct original_width and original_height"
        )
    return width, height


def _gather(entries: Iterable[Mapping[str, Any]], notes: list[tuple[str, str]]) -> dict[str, _Region]:
    """The regions of entries; of several with one id, each geometry is a region of its own."""
    regions: dict[str, _Region] = {}
    newest: dict[str, str] = {}  # id -> key of the latest region with it
    for number, entry in enumerate(entries):
        region_id = str(entry.get("id") or f"#{number}")
        kind, value = str(entry.get("type", "")), entry.get("value")
        value = value if isinstance(value, Mapping) else {}
        key = newest.get(region_id, region_id)
        is_geometry = kind not in _LABEL_TYPES
        if is_geometry and key in regions and regions[key].value is not None:
            key = f"{region_id}#{number}"
            notes.append((region_id, "its id occurs again; each is a region of its own"))
        newest[region_id] = key
        region = regions.setdefault(key, _Region(region_id))
        labels = _labels(kind, value)
        if len(labels) > 1 and not region.label:
            notes.append((region_id, f"it has {len(labels)} labels, {', '.join(labels)}; the first counts"))
        region.label = region.label or (labels[0] if labels else "")
        region.parent_id = region.parent_id or str(entry.get("parentID") or "")
        region.score = region.score if region.score is not None else _score(entry.get("score"))
        if is_geometry:
            region.kind, region.value = kind.removesuffix("labels"), value
            region.painted_hw = painted_size(entry)
    return regions


def painted_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the image that a region was drawn on; None where the entry has none to be believed."""
    rows, columns = entry.get("original_height"), entry.get("original_width")
    if not isinstance(rows, int) or not isinstance(columns, int):
        return None
    return (rows, columns) if rows > 0 and 0 < columns <= MAX_PIXELS // rows else None


def _labels(kind: str, value: Mapping[str, Any]) -> list[str]:
    labels = value.get(kind)
    if isinstance(labels, str):
        return [labels]
    return [str(label) for label in labels] if isinstance(labels, list) else []


def _score(score: object) -> float | None:
    return float(score) if isinstance(score, int | float) and math.isfinite(score) else None


def _root(region: _Region, regions: Mapping[str, _Region]) -> str:
    """The topmost known parent with the same label; a cycle ends where it began."""
    visited_ids = {region.id}
    while (parent := regions.get(region.parent_id)) is not None and parent.id not in visited_ids:
        if parent.label != region.label:
            break
        visited_ids.add(parent.id)
        region = parent
    return region.id


def _object(parts: Sequence[tuple[_Region, np.ndarray]]) -> AnnotatedObject:
    parts = sorted(parts, key=lambda part: bool(part[0].parent_id))
    mask_hw = parts[0][1].copy()
    for _, part_hw in parts[1:]:
        mask_hw |= part_hw
    regions = [region for region, _ in parts]
    return AnnotatedObject(
        regions[0].label,
        mask_hw,
        tuple(region.id for region in regions),
        tuple(region.kind for region in regions),
        regions[0].score,
    )


def _mask(region: _Region, width: int, height: int) -> np.ndarray:
    if region.kind not in GEOMETRIES or region.value is None:
        raise ShapeError(f"type {region.kind or 'without geometry'!r} is not an outline, a brush or a box")
    if not region.label:
        raise ShapeError("it has no label")
    return mask_of(region.kind, region.value, width, height, region.painted_hw)


#: Coarser kinds last.
_FINEST_FIRST = ("brush", "bitmask", "polygon", "vector", "ellipse", "rectangle")
_OUTLINES = (*GEOMETRIES, *(f"{kind}labels" for kind in GEOMETRIES), "labels")
#: Results about the whole image: leaving them out loses no object.
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
        turned: the reason, if outlines were drawn on the image turned by a quarter; else "".
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
    outline_entries, left_out, notes = _of_controls(result, config)
    try:
        decoded = regions_to_objects(outline_entries, width=width, height=height)
    except AnnotationError as error:
        broken_regions = tuple((str(entry.get("id", "")), str(error)) for entry in outline_entries)
        return Drawings((), (*left_out, *broken_regions), nowhere=len(broken_regions))
    left_out += decoded.skipped
    notes += decoded.notes
    objects: list[AnnotatedObject] = []
    ignored: list[AnnotatedObject] = []
    nowhere = 0
    for region_id, _ in decoded.skipped:
        entries = [entry for entry in outline_entries if str(entry.get("id") or "") == region_id]
        extents = [extent for entry in entries if (extent := extent_of(entry, width, height)) is not None]
        extent_hw = np.any(extents, axis=0) if extents else np.zeros(0)
        if extent_hw.any():
            ignored.append(AnnotatedObject("", extent_hw, (region_id,), ("unreadable",)))
        elif not extents:
            nowhere += 1
    own_ids = _own_ids(result, config)
    allowed_labels = labels if labels is not None else config.labels if config else None
    for instance in decoded.objects:
        if allowed_labels is None or instance.label in allowed_labels:
            objects.append(instance)
        else:
            left_out += _reasons(instance, f"label {instance.label!r} is not among the labels of the project")
            # A box of another control is a region of interest or the like, not an object.
            if own_ids is None or instance.region_ids[0] in own_ids or not is_box(instance):
                ignored.append(instance)
    doubles = _doubles(objects)
    for number, finer in doubles.items():
        notes += _reasons(objects[number], f"the same object is drawn as {objects[finer].kinds[0]}")
    kept_objects = tuple(instance for number, instance in enumerate(objects) if number not in doubles)
    turned, resize_note = _of_another_shape(outline_entries, width, height)
    notes += [resize_note] if resize_note else []
    return Drawings(kept_objects, tuple(left_out), tuple(ignored), nowhere, tuple(notes), turned)


def _of_another_shape(
    entries: Sequence[Mapping[str, Any]], width: int, height: int
) -> tuple[str, tuple[str, str] | None]:
    """How the image drawn on differs in shape: a reason if it was turned, else a note; of the first such entry.

    Coordinates are percentages, so that a size that is wrong, as scripts write it, does no harm; a turn does.
    """
    for entry in entries:
        rows, columns = painted_size(entry) or (height, width)
        rounding = max(width + height, rows + columns)  # a side of a scaled image may be a pixel longer or shorter
        if abs(rows * width - columns * height) <= rounding:
            continue
        text = f"drawn on an image of {columns} x {rows} pixels, which is no size of this one of {width} x {height}"
        if abs(columns * width - rows * height) <= rounding:
            return f"it was {text}: it was turned", None
        return "", (str(entry.get("id") or ""), f"{text}: its percentages are taken of this one")
    return "", None


def is_box(instance: AnnotatedObject) -> bool:
    """Whether only a box was drawn, so that its mask says nothing about the outline."""
    return all(kind == "rectangle" for kind in instance.kinds)


def _of_controls(
    result: Sequence[Mapping[str, Any]], config: LabelConfig | None
) -> tuple[list[Mapping[str, Any]], list[tuple[str, str]], list[tuple[str, str]]]:
    """The entries that outline objects of this image; of the others, what is left out and what is only noted."""
    names = {name for control in config.controls for name in (control.name, control.labels_name)} if config else None
    image = config.controls[0].to_name if config else None
    outline_entries, other_entries, other_image_entries = [], [], []
    for entry in result:
        if entry.get("type") == "relation":
            continue
        name, kind = str(entry.get("from_name")), str(entry.get("type"))
        if (image and entry.get("to_name", image) != image) or entry.get("item_index") not in (None, 0):
            other_image_entries.append(entry)
        elif (names is not None and name in names) or kind in _OUTLINES:
            outline_entries.append(entry)
        else:
            other_entries.append(entry)
    outline_ids = {str(entry.get("id")) for entry in outline_entries}
    other_image_reasons = {
        str(entry.get("id", "")): f"it is of another image: {entry.get('to_name')!r}, item {entry.get('item_index', 0)}"
        for entry in other_image_entries
    }
    left_out, notes = [*other_image_reasons.items()], list[tuple[str, str]]()
    for entry in other_entries:
        if str(entry.get("id")) in outline_ids:  # a text or a rating about an object has the id of its region
            continue
        reason = f"control {entry.get('from_name')!r} ({entry.get('type')}) outlines nothing"
        is_text = str(entry.get("type")) in _WITHOUT_PLACE
        (notes if is_text else left_out).append((str(entry.get("id", "")), reason))
    return outline_entries, left_out, notes


def _own_ids(result: Sequence[Mapping[str, Any]], config: LabelConfig | None) -> set[str] | None:
    """Ids of regions of the config's own controls; None without a config."""
    if config is None:
        return None
    names = {name for control in config.controls for name in (control.name, control.labels_name)}
    return {str(entry.get("id") or "") for entry in result if str(entry.get("from_name")) in names}


def _reasons(instance: AnnotatedObject, reason: str) -> list[tuple[str, str]]:
    return [(region_id, reason) for region_id in instance.region_ids]


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


def _rank(instance: AnnotatedObject) -> int:
    return min(_FINEST_FIRST.index(kind) for kind in instance.kinds)


def _is_same(finer: AnnotatedObject, coarser: AnnotatedObject) -> bool:
    if finer.label != coarser.label or _rank(finer) == _rank(coarser):
        return False
    mask_hw = _filled_box(finer.mask_hw) if is_box(coarser) else finer.mask_hw
    return iou(mask_hw, coarser.mask_hw) >= _TWICE_IOU


def _filled_box(mask_hw: np.ndarray) -> np.ndarray:
    box_hw = np.zeros_like(mask_hw)
    left, top, right, bottom = box_of(mask_hw)
    box_hw[top:bottom, left:right] = True
    return box_hw


#: Least IoU of two drawings of one object.
SAME_IOU = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Consensus:
    """The objects of an image after a vote.

    Attributes:
        objects: what the majority drew. Each pixel follows the majority of those who drew the object, in a tie the
            latest of them; region ids and kinds are those of the latest, too.
        disputed: what no majority drew, or not with one label: neither an object nor background.
    """

    objects: tuple[AnnotatedObject, ...]
    disputed: tuple[AnnotatedObject, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    annotator: int
    instance: AnnotatedObject


def vote(drawings: Sequence[Sequence[AnnotatedObject]]) -> Consensus:
    """Vote on the objects of one image.

    Args:
        drawings: the objects of each annotator, whoever submitted last in the last place; masks of one size.
    """
    candidates = [
        _Candidate(annotator, instance) for annotator, drawings_of in enumerate(drawings) for instance in drawings_of
    ]
    objects, disputed = [], []
    for group in _groups(candidates):
        label, votes = Counter(candidate.instance.label for candidate in group).most_common(1)[0]
        if 2 * len(group) > len(drawings) and 2 * votes > len(group):
            objects.append(_unite(group, label))
        else:
            disputed.append(group[-1].instance)
    return Consensus(tuple(objects), tuple(disputed))


def _groups(candidates: Sequence[_Candidate]) -> list[list[_Candidate]]:
    """Group the drawings of one object: each group by annotator (the latest last), groups by their first drawing."""
    masks = [candidate.instance.mask_hw for candidate in candidates]
    overlaps = iou_matrix(masks, masks)
    pairs = []
    for i, k in combinations(range(len(candidates)), 2):
        candidate, other_candidate = candidates[i], candidates[k]
        if candidate.annotator != other_candidate.annotator and overlaps[i, k] >= SAME_IOU:
            pairs.append((-overlaps[i, k], i, k))
    group_of = {i: [i] for i in range(len(candidates))}
    for _, i, k in sorted(pairs):
        group_i, group_k = group_of[i], group_of[k]
        annotators = [candidates[n].annotator for n in group_i + group_k]
        if group_i is not group_k and len(set(annotators)) == len(annotators):
            group_i += group_k
            group_of |= dict.fromkeys(group_k, group_i)
    distinct = {id(group): group for group in group_of.values()}
    return [sorted((candidates[n] for n in group), key=lambda c: c.annotator) for group in distinct.values()]


def _unite(group: Sequence[_Candidate], label: str) -> AnnotatedObject:
    votes = np.sum([candidate.instance.mask_hw for candidate in group], axis=0, dtype=np.int32) * 2
    latest = group[-1].instance
    mask_hw = (votes > len(group)) | ((votes == len(group)) & latest.mask_hw)
    return replace(latest, label=label, mask_hw=mask_hw if mask_hw.any() else latest.mask_hw)
