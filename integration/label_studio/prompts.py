"""What an annotator points at: boxes, clicks, polygons and brush strokes of Label Studio's smart tools.

An interactive request sends the regions of one tool with one label, the newest last: all clicks so far, but of boxes,
polygons and strokes also those that are finished, so only the newest of them counts. Label Studio 1.23.2 sends boxes
and clicks (measured; polygons and brush strokes are never sent, but other clients may). A click after a smart box
arrives without the box, so the caller remembers the task's last prompt (`EarlierPrompt`), and `with_earlier` joins
the two.

Coordinates are in percent of the upright image. The API reads prompts, so nothing here needs a library for arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from integration.label_studio.label_config import LabelConfig

Box = tuple[float, float, float, float]
Click = tuple[float, float, bool]
#: Clicks of one region that are read: an annotator clicks a few times, a forged request may not fill the queue.
MOST_CLICKS = 100


class PromptError(ValueError):
    """A prompt that cannot be answered; the text says why and what to do."""


class PromptFields(TypedDict):
    """What was pointed at, as plain types.

    Attributes:
        box_pct: left, top, right, bottom of the newest box-like region, or None.
        points_pct: x, y and whether the object is there, in the order of the clicks.
        drawing: the newest polygon or brush region, or None.
        region: id of the region in work, the same for all prompts about one object.
    """

    box_pct: list[float] | None
    points_pct: list[Click]
    drawing: dict[str, Any] | None
    label: str
    region: str


class EarlierPrompt(TypedDict):
    """The last prompt of a task.

    Attributes:
        base: the prompt without the clicks of its context.
        answer_ids: ids of the regions that were the answer.
    """

    base: PromptFields
    clicks: list[Click]
    answer_ids: list[str]


def read_prompt(context: Mapping[str, Any], config: LabelConfig) -> PromptFields | None:
    """The prompt of a context, perhaps of negative clicks alone; None when it holds nothing that points at a place.

    Raises:
        PromptError: no control for outlines has the chosen label.
    """
    entries = _merge_entries(context)
    has_marks = any("is_positive" in entry for entry in entries)
    box: list[float] | None = None
    points: list[Click] = []
    drawing: dict[str, Any] | None = None
    region = ""
    for entry in entries:
        value = entry["value"]
        bounds = bounds_pct(entry)
        if value.get("rle") or value.get("imageDataURL"):
            box, points, drawing, region = None, [], entry, str(entry.get("id", ""))
        elif bounds is None or not all(map(math.isfinite, bounds)):
            continue
        elif not is_point(bounds):
            box, points, drawing = list(bounds), [], entry if value.get("points") else None
            region = str(entry.get("id", ""))
        elif "is_positive" in entry or not has_marks:
            # Key points without the mark, beside others that have it, are annotations and no clicks.
            points.append((bounds[0], bounds[1], entry.get("is_positive") is not False))
            region = region or str(entry.get("id", ""))
    if box is None and drawing is None and not points:
        return None
    label = _chosen_label(entries, config)
    return {"box_pct": box, "points_pct": points[-MOST_CLICKS:], "drawing": drawing, "label": label, "region": region}


def _merge_entries(context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The regions of a context: entries of one id, geometry and label apart, are one region."""
    regions: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(context.get("result") or []):
        if isinstance(entry, dict) and isinstance(entry.get("value"), dict):
            key = str(entry.get("id") or f"entry {number}")
            region = regions.get(key)
            regions[key] = {**region, "value": {**region["value"], **entry["value"]}} if region else entry
    return list(regions.values())


def _chosen_label(entries: Sequence[Mapping[str, Any]], config: LabelConfig) -> str:
    """The label of the newest region that has one, as results spell it; without any the config's first."""
    spellings = {name: label.value for control in config.controls for label in control.labels for name in label.names}
    for entry in reversed(entries):
        names = [
            str(label)
            for key, labels in entry["value"].items()
            if key.endswith(("labels", "choices")) and isinstance(labels, list)
            for label in labels
        ]
        for label in names:
            if label in spellings:
                return spellings[label]
        if names:
            raise PromptError(
                f"no control for outlines has the label {names[0]!r}; add it to the PolygonLabels or BrushLabels tag"
            )
    return config.labels[0] if config.labels else ""


def with_earlier(
    prompt: PromptFields | None, earlier: EarlierPrompt | None, saved_ids: frozenset[str]
) -> tuple[PromptFields | None, EarlierPrompt | None]:
    """Join a context's prompt with the task's earlier one; with it, what to remember (without its answer's ids yet).

    Clicks belong to the earlier box or mask when the context before held some of them; when all are negative; or when
    they lie in the earlier box, its answer was not accepted yet and the label is the same. A context without regions
    takes clicks back.
    """
    if prompt is None:
        has_base = bool(earlier and earlier["clicks"] and _points_somewhere(earlier["base"]))
        return (earlier["base"], {**earlier, "clicks": []}) if earlier and has_base else (None, None)
    if (
        earlier is not None
        and not (prompt["box_pct"] or prompt["drawing"])
        and prompt["label"] == earlier["base"]["label"]
    ):
        clicks = [(x, y, bool(sign)) for x, y, sign in prompt["points_pct"]]
        earlier_clicks = {(x, y, bool(sign)) for x, y, sign in earlier["clicks"]}
        base = earlier["base"]
        if not earlier_clicks & set(clicks):
            base = {**base, "points_pct": [*base["points_pct"], *earlier["clicks"]]}
            if not _continues(clicks, base, bool(saved_ids & set(earlier["answer_ids"]))):
                return prompt, _remembered(prompt)
        points = [*base["points_pct"], *clicks][-MOST_CLICKS:]
        return {**base, "points_pct": points}, {"base": base, "clicks": clicks, "answer_ids": []}
    return prompt, _remembered(prompt)


def region_ids(groups: Sequence[Any]) -> frozenset[str]:
    """Ids of the regions of a task's drafts or annotations, as Label Studio sends them."""
    results = [group.get("result") for group in groups if isinstance(group, Mapping)]
    return frozenset(
        str(region["id"])
        for result in results
        if isinstance(result, list)
        for region in result
        if isinstance(region, dict) and "id" in region
    )


def _continues(clicks: Sequence[Click], base: PromptFields, is_accepted: bool) -> bool:
    """Whether clicks belong to the earlier prompt although they repeat none of its clicks."""
    positive = [click for click in clicks if click[2]]
    if not positive:
        return True
    box = base["box_pct"]
    if box is None or is_accepted:
        return False
    return all(box[0] <= x <= box[2] and box[1] <= y <= box[3] for x, y, _ in positive)


def _remembered(prompt: PromptFields) -> EarlierPrompt:
    return {"base": {**prompt, "points_pct": []}, "clicks": prompt["points_pct"], "answer_ids": []}


def _points_somewhere(prompt: PromptFields) -> bool:
    return bool(prompt["box_pct"] or prompt["drawing"] or any(sign for *_, sign in prompt["points_pct"]))


def require_place(prompt: PromptFields | None) -> PromptFields:
    """Return the prompt; raise PromptError unless it says where the object is."""
    if prompt is None or not _points_somewhere(prompt):
        raise PromptError("nothing says where the object is; draw a box around it or click into it first")
    return prompt


def is_point(box: Box) -> bool:
    """Whether bounds have no extent."""
    return box[0] == box[2] and box[1] == box[3]


def outline_pct(value: Mapping[str, Any]) -> list[Any]:
    """The points of a polygon or the vertices of a vector; [] for other kinds."""
    return value.get("points") or [(vertex["x"], vertex["y"]) for vertex in value.get("vertices") or ()]


def bounds_pct(region: object) -> Box | None:
    """Bounding box of a region of any kind; a point for a key point; None for brushes and what is unknown."""
    value = region.get("value") if isinstance(region, dict) else None
    if not isinstance(region, dict) or not isinstance(value, dict):
        return None
    try:
        if points := outline_pct(value):
            xs, ys = zip(*((float(x), float(y)) for x, y in points), strict=True)
            return min(xs), min(ys), max(xs), max(ys)
        x, y = float(value["x"]), float(value["y"])
        if "radiusX" in value:
            rx, ry = float(value["radiusX"]), float(value["radiusY"])
            return x - rx, y - ry, x + rx, y + ry
        if "height" in value:
            return _rectangle_bounds(region, x, y, float(value["width"]), float(value["height"]))
    except (KeyError, TypeError, ValueError):
        return None
    # A key point's width is that of its dot.
    return x, y, x, y


def _rectangle_bounds(region: Mapping[str, Any], x: float, y: float, width: float, height: float) -> Box:
    """Bounds of a rectangle that is turned clockwise about its upper left corner."""
    angle = math.radians(float(region["value"].get("rotation") or 0.0))
    # Turned in pixels: percent of the width and of the height are different lengths.
    aspect = float(region.get("original_width") or 1.0) / float(region.get("original_height") or 1.0)
    sides = ((width * aspect, 0.0), (width * aspect, height), (0.0, height), (0.0, 0.0))
    xs = [x + (u * math.cos(angle) - v * math.sin(angle)) / aspect for u, v in sides]
    ys = [y + u * math.sin(angle) + v * math.cos(angle) for u, v in sides]
    return min(xs), min(ys), max(xs), max(ys)
