"""Interactive requests: of everything outlined in the image, the object that somebody has just pointed at.

The model takes no prompts, but its outlines are there (often already computed): a click chooses the smallest object
under it, a box the object that fills it best. Positions are percent of the image, as Label Studio's regions are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Box = tuple[float, float, float, float]
# An object must overlap the drawn box at least this much (intersection over union of boxes) to be meant by it.
LEAST_OVERLAP = 0.1


def chosen_regions(prediction: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """The prediction with only the region that the newest prompt means; all of it when no prompt can be read."""
    prompts = [box for region in context.get("result") or [] if (box := _bounds_pct(region)) is not None]
    if not prompts:
        return prediction
    bounds = [(_bounds_pct(region), region) for region in prediction["result"]]
    boxes = [(box, region) for box, region in bounds if box is not None]
    best = _at_point(boxes, prompts[-1]) if _is_point(prompts[-1]) else _in_box(boxes, prompts[-1])
    return {**prediction, "result": [best] if best else []}


def _is_point(box: Box) -> bool:
    return box[0] == box[2] and box[1] == box[3]


def _at_point(boxes: Sequence[tuple[Box, dict[str, Any]]], point: Box) -> dict[str, Any] | None:
    x, y = point[:2]
    under = [(_area(box), index) for index, (box, region) in enumerate(boxes) if _covers(box, region, x, y)]
    return boxes[min(under)[1]][1] if under else None


def _covers(box: Box, region: dict[str, Any], x: float, y: float) -> bool:
    if not (box[0] <= x <= box[2] and box[1] <= y <= box[3]):
        return False
    points = region["value"].get("points")
    return _inside(points, x, y) if points else True


def _inside(points: Sequence[Sequence[float]], x: float, y: float) -> bool:
    """Even-odd rule."""
    inside = False
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            inside = not inside
    return inside


def _in_box(boxes: Sequence[tuple[Box, dict[str, Any]]], prompt: Box) -> dict[str, Any] | None:
    overlaps = [(_iou(box, prompt), -index) for index, (box, _) in enumerate(boxes)]
    overlap, index = max(overlaps, default=(0.0, 0))
    return boxes[-index][1] if overlap >= LEAST_OVERLAP else None


def _bounds_pct(region: object) -> Box | None:
    """Bounding box of a region of any kind; a point for a key point; None for brushes and what is unknown."""
    value = region.get("value") if isinstance(region, dict) else None
    if not isinstance(value, dict):
        return None
    try:
        if value.get("points"):
            xs, ys = zip(*((float(x), float(y)) for x, y in value["points"]), strict=True)
            return min(xs), min(ys), max(xs), max(ys)
        x, y = float(value["x"]), float(value["y"])
        if "radiusX" in value:
            rx, ry = float(value["radiusX"]), float(value["radiusY"])
            return x - rx, y - ry, x + rx, y + ry
        if "height" in value:
            return x, y, x + float(value["width"]), y + float(value["height"])
    except (KeyError, TypeError, ValueError):
        return None
    # A key point's width is that of its dot.
    return x, y, x, y


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _iou(a: Box, b: Box) -> float:
    common = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - common
    return common / union if union > 0 else 0.0
