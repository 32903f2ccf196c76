"""Label Studio regions back to masks: what people drew and submitted.

Coordinates in regions are percent of the upright, unrotated image: the editor's rotate button only sets
`image_rotation` (measured), so it is ignored here. `parentID` joins the parts of one object.

Shapes: H, W mask size; N points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from integration.polygons.convert import polygons_to_mask
from integration.polygons.exact import Polygon
from integration.regions.painted import BitmaskError, BrushError, decode_bitmask, decode_brush_mask

#: Larger sizes in a region are taken for nonsense: the masks would not fit any memory.
MAX_PIXELS = 200_000_000
#: Decimals of a pixel kept: percent with 8 decimals come back to the very lattice points they were made of.
_DECIMALS = 4
GEOMETRIES = ("polygon", "brush", "bitmask", "ellipse", "vector", "rectangle")
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


class _Skip(Exception):  # noqa: N818 - leaves this module as a reason, never as an error
    """A region that cannot be an object."""


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
    drawn: dict[tuple[str, str], list[tuple[_Region, np.ndarray]]] = {}
    skipped = []
    for region in regions.values():
        try:
            mask_hw = _mask(region, width, height)
        except (_Skip, BrushError, BitmaskError) as error:
            skipped.append((region.id, str(error)))
            continue
        drawn.setdefault((_root(region, regions), region.label), []).append((region, mask_hw))
    objects = tuple(_object(parts) for parts in drawn.values())
    return Decoded(objects, tuple(skipped), width, height, tuple(notes))


def _size(entries: Sequence[Mapping[str, Any]], width: int | None, height: int | None) -> tuple[int, int]:
    if width is None or height is None:
        sizes = ((entry.get("original_width"), entry.get("original_height")) for entry in entries)
        width, height = next((size for size in sizes if all(isinstance(n, int) for n in size)), (0, 0))
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
    seen = {region.id}
    while (parent := regions.get(region.parent_id)) is not None and parent.id not in seen:
        if parent.label != region.label:
            break
        seen.add(parent.id)
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
        raise _Skip(f"type {region.kind or 'without geometry'!r} is not an outline, a brush or a box")
    if not region.label:
        raise _Skip("it has no label")
    if region.kind in ("brush", "bitmask"):
        mask_hw = _painted_mask(region, width, height)
    else:
        if region.kind == "polygon":
            points = _polygon_px(region.value)
        elif region.kind == "vector":
            points = _vector(region.value)
        elif region.kind == "ellipse":
            points = _ellipse(region.value, width, height)
        else:
            points = _rectangle(region.value, width, height)
        ring = np.round(points * np.array([width, height]) / 100, _DECIMALS)
        mask_hw = polygons_to_mask([Polygon(ring)], height, width)
    if not mask_hw.any():
        raise _Skip("it covers no pixel")
    return mask_hw


def _painted_mask(region: _Region, width: int, height: int) -> np.ndarray:
    """The painted pixels (H, W); what was painted on another size of the image is scaled, nearest pixels."""
    value = region.value or {}
    if region.kind == "brush" and value.get("format") != "rle":
        raise _Skip(f"brush format {value.get('format')!r} is not 'rle'")

    def decode(height: int, width: int) -> np.ndarray:
        if region.kind == "brush":
            return decode_brush_mask(value.get("rle") or [], height, width)
        return decode_bitmask(value.get("imageDataURL"), height, width)

    rows, columns = region.painted_hw or (height, width)
    try:
        return decode(height, width)
    except (BrushError, BitmaskError):
        if (rows, columns) == (height, width):
            raise
    mask_hw = decode(rows, columns)
    return mask_hw[np.arange(height) * rows // height][:, np.arange(width) * columns // width]


def _polygon_px(value: Mapping[str, Any]) -> np.ndarray:
    """Percent points (N, 2) of a polygon."""
    points = _numbers(value.get("points") or [])
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 3:
        raise _Skip("a polygon needs at least 3 points of x and y")
    if value.get("closed") is False:
        raise _Skip("the polygon is not closed: it was never finished")
    return points


def _rectangle(value: Mapping[str, Any], width: int, height: int) -> np.ndarray:
    """Percent corners (4, 2) of a box, turned clockwise about its top left corner by `rotation` degrees."""
    numbers = _numbers([value.get(key, 0) for key in ("x", "y", "width", "height", "rotation")])
    x, y, box_width, box_height, rotation = numbers.tolist()
    size_px = np.array([width, height])
    angle = math.radians(rotation)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    corners = np.array([[0, 0], [box_width, 0], [box_width, box_height], [0, box_height]])
    return np.array([x, y]) + (corners * size_px) @ turn / size_px


#: Points of an ellipse's outline: at 1000 px radius they lie 0.05 px inside it.
_ELLIPSE_POINTS = 360


def _ellipse(value: Mapping[str, Any], width: int, height: int) -> np.ndarray:
    """Percent points (N, 2) of an ellipse, turned clockwise about its centre by `rotation` degrees.

    `radiusX` is in percent of the width, `radiusY` in percent of the height.
    """
    numbers = _numbers([value.get(key, 0) for key in ("x", "y", "radiusX", "radiusY", "rotation")])
    x, y, radius_x, radius_y, rotation = numbers.tolist()
    size_px, angle = np.array([width, height]), math.radians(rotation)
    around = np.linspace(0, 2 * math.pi, _ELLIPSE_POINTS, endpoint=False)
    points_px = np.stack([np.cos(around) * radius_x * width, np.sin(around) * radius_y * height], axis=1) / 100
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return np.array([x, y]) + points_px @ turn * 100 / size_px


#: Straight edges that stand for one Bezier curve.
_BEZIER_POINTS = 32


def _vector(value: Mapping[str, Any]) -> np.ndarray:
    """Percent points (N, 2) of a closed path of straight edges and cubic Bezier curves.

    A curve leaves a vertex towards its `controlPoint2` and arrives at the next from its `controlPoint1`.
    """
    vertices = value.get("vertices") or value.get("points") or []
    if value.get("closed") is not True:
        raise _Skip("the vector is not closed: it encloses nothing")
    if not isinstance(vertices, list):
        raise _Skip("a vector needs a list of vertices")
    points = _numbers([[v.get("x"), v.get("y")] if isinstance(v, Mapping) else v for v in vertices])
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 2:
        raise _Skip("a vector needs at least 3 vertices of x and y, or 2 with Bezier curves")
    path = [points[:1]]
    for number, point in enumerate(points):
        follower = (number + 1) % len(points)
        ends = vertices[number], vertices[follower]
        leaving, arriving = _control(ends[0], "controlPoint2"), _control(ends[1], "controlPoint1")
        if leaving is None and arriving is None:
            path.append(points[follower][None])
            continue
        first, last = point if leaving is None else leaving, points[follower] if arriving is None else arriving
        t = np.linspace(0, 1, _BEZIER_POINTS + 1)[1:, None]
        path.append(
            (1 - t) ** 3 * point + 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * last + t**3 * points[follower]
        )
    outline = np.concatenate(path)[:-1]
    if len(outline) < 3:
        raise _Skip("a vector needs at least 3 vertices of x and y, or 2 with Bezier curves")
    return outline


def _control(vertex: object, name: str) -> np.ndarray | None:
    """A control point (2,) of a Bezier vertex; None where it has none."""
    if not isinstance(vertex, Mapping) or not vertex.get("isBezier"):
        return None
    point = vertex.get(name)
    if not isinstance(point, Mapping) or (vertex.get("disconnected") and point.get("x") is None):
        return None
    return _numbers([point.get("x"), point.get("y")])


def extent_of(entry: Mapping[str, Any], width: int, height: int) -> np.ndarray | None:
    """The pixels (H, W) that a region without a readable mask is known to lie in; None where it says nothing."""
    value = entry.get("value")
    value = value if isinstance(value, Mapping) else {}
    vertices = value.get("vertices") or value.get("points")
    try:
        if vertices:
            points = _numbers([[v.get("x"), v.get("y")] if isinstance(v, Mapping) else v for v in vertices])
        elif "radiusX" in value:
            points = _ellipse(value, width, height)
        elif "width" in value and "height" in value:
            points = _rectangle(value, width, height)
        else:
            return None
    except (_Skip, TypeError, AttributeError):
        return None
    if points.ndim != 2 or points.shape[1:] != (2,):
        return None
    corners = np.clip(points, 0, 100) * np.array([width, height]) / 100
    (left, top), (right, bottom) = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    mask_hw = np.zeros((height, width), bool)
    mask_hw[top:bottom, left:right] = True
    return mask_hw


def _numbers(values: object) -> np.ndarray:
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise _Skip(f"its coordinates are not numbers: {error}") from error
    if not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > 1e6:
        raise _Skip("its coordinates are not finite numbers")
    return numbers
