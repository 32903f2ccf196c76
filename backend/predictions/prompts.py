"""Interactive requests: what an annotator points at, and the answer where no model takes prompts.

`params.context.result` holds the prompts of the region in work, the newest last, in percent of the image: key points
(`is_positive` says whether the object is there; the editor sends it for smart key points only, so an absent one is
positive), rectangles, ellipses, polygons and brushes. A promptable model answers them (`backend.worker.prompt_runner`).
Where none is installed, the outlines that are there are chosen from: a click takes the smallest object under it, a box
the object that fills it best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from integration.label_studio.label_config import LabelConfig

Box = tuple[float, float, float, float]
# An object must overlap the drawn box at least this much (intersection over union of boxes) to be meant by it.
LEAST_OVERLAP = 0.1
# Prompts of one region that are read: an annotator clicks a few times, a forged request may not fill the queue.
MOST_POINTS = 100


class PromptFields(TypedDict):
    """What was pointed at, as it travels through the queue; coordinates in percent of the upright image.

    Attributes:
        box_pct: left, top, right, bottom of the newest box-like prompt, or None.
        points_pct: x, y and whether the object is there, in the order of the clicks.
        drawing: the newest polygon or brush region (the mask so far), or None.
        label: chosen by the annotator; the first of the label config where the editor sent none.
        region: id of the region in work.
    """

    box_pct: list[float] | None
    points_pct: list[tuple[float, float, bool]]
    drawing: dict[str, Any] | None
    label: str
    region: str


def read_prompt(context: Mapping[str, Any], config: LabelConfig) -> PromptFields | None:
    """The prompts of a context; None when it holds nothing that points at a place."""
    regions = [region for region in context.get("result") or [] if isinstance(region, dict)]
    box: list[float] | None = None
    points: list[tuple[float, float, bool]] = []
    drawing: dict[str, Any] | None = None
    for region in regions:
        value = region.get("value")
        if not isinstance(value, dict):
            continue
        if value.get("rle") or value.get("imageDataURL"):
            drawing = region
        elif (bounds := _bounds_pct(region)) is not None and all(map(math.isfinite, bounds)):
            if _is_point(bounds):
                points.append((bounds[0], bounds[1], region.get("is_positive") is not False))
            else:
                # A newer box is a new object: clicks before it belonged to the one before.
                box, points, drawing = list(bounds), [], region if value.get("points") else None
    if box is None and drawing is None and not any(is_positive for *_, is_positive in points):
        return None
    return {
        "box_pct": box,
        "points_pct": points[-MOST_POINTS:],
        "drawing": drawing,
        "label": _chosen_label(regions, config),
        "region": str(next((region["id"] for region in reversed(regions) if region.get("id")), "")),
    }


def _chosen_label(regions: Sequence[Mapping[str, Any]], config: LabelConfig) -> str:
    """The newest label that the label config knows, else its first one."""
    known = set(config.labels)
    for region in reversed(regions):
        value = region.get("value")
        for key, labels in value.items() if isinstance(value, dict) else ():
            if key.endswith(("labels", "choices")) and isinstance(labels, list):
                for label in labels:
                    if str(label) in known:
                        return str(label)
    return config.labels[0] if config.labels else ""


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
