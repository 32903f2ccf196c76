"""Interactive requests: the last prompt of each task, and the answer where no promptable model is installed.

Such an answer is one of the predicted outlines: a click selects the smallest object under it, a box the object that
fills it best. `integration.label_studio.prompts` reads what the editor sends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from redis import Redis

from backend.queue.keys import prompted_key
from integration.label_studio.prompts import Box, EarlierPrompt, bounds_pct, is_point, outline_pct
from integration.label_studio.tasks import Prediction, Region
from integration.regions.shapes import decode_bitmask, decode_brush_mask
from model.instance import box_of

# A box selects an object that overlaps it at least this much (intersection over union of boxes).
LEAST_OVERLAP = 0.1
# The last prompt of a task is kept this long, in s; larger records (a brush stroke over a whole image) are not.
MEMORY_S = 600
MOST_BYTES = 2**16


class PromptMemory:
    """The last prompt of each task, in Redis: any API process may get the next click."""

    def __init__(self, connection: Redis) -> None:
        self.connection = connection

    def get(self, project: str, task: object) -> EarlierPrompt | None:
        """The last prompt of a project's task; None after `MEMORY_S`, and for clients without a project."""
        record: Any = self.connection.get(prompted_key(project, task)) if project else None
        return json.loads(record) if record else None

    def save(self, project: str, task: object, prompt: EarlierPrompt | None) -> None:
        """Store the last prompt of a task; None deletes it."""
        record = json.dumps(prompt) if prompt else ""
        if project and record and len(record) <= MOST_BYTES:
            self.connection.set(prompted_key(project, task), record, ex=MEMORY_S)
        elif project:
            self.connection.delete(prompted_key(project, task))


def chosen_regions(prediction: Prediction, context: Mapping[str, Any]) -> Prediction:
    """Keep only the region that the newest prompt selects; all regions when no prompt can be read."""
    prompts = [box for region in context.get("result") or [] if (box := bounds_pct(region)) is not None]
    if not prompts:
        return prediction
    bounds = [(_bounds(region), region) for region in prediction["result"]]
    boxes = [(box, region) for box, region in bounds if box is not None]
    choice = _at_point(boxes, *prompts[-1][:2]) if is_point(prompts[-1]) else _in_box(boxes, prompts[-1])
    # An object may be several entries of one id: geometry and label of tags of their own.
    name = choice.get("id") if choice else None
    regions = [region for region in prediction["result"] if region is choice or (name and region.get("id") == name)]
    return {**prediction, "result": regions}


def _bounds(region: Region) -> Box | None:
    """Bounding box in percent, of a painted mask too; None for empty masks."""
    mask_hw = _painted(region)
    if mask_hw is None:
        return bounds_pct(region)
    if not mask_hw.any():
        return None
    x0, y0, x1, y1 = box_of(mask_hw)
    height, width = mask_hw.shape
    return 100 * x0 / width, 100 * y0 / height, 100 * x1 / width, 100 * y1 / height


def _painted(region: Region) -> np.ndarray | None:
    """The mask (bool, H x W) of a brush or bitmask region that we wrote; None for other kinds."""
    value = region["value"]
    if "rle" in value:
        return decode_brush_mask(value["rle"], region["original_height"], region["original_width"])
    if "imageDataURL" in value:
        return decode_bitmask(value["imageDataURL"], region["original_height"], region["original_width"])
    return None


def _at_point(boxes: Sequence[tuple[Box, Region]], x: float, y: float) -> Region | None:
    """The smallest object under a point."""
    under = [(_area(box), index) for index, (box, region) in enumerate(boxes) if _covers(box, region, x, y)]
    return boxes[min(under)[1]][1] if under else None


def _covers(box: Box, region: Region, x: float, y: float) -> bool:
    if not (box[0] <= x <= box[2] and box[1] <= y <= box[3]):
        return False
    if (mask_hw := _painted(region)) is not None:
        row, column = (int(place * side / 100) for place, side in zip((y, x), mask_hw.shape, strict=True))
        return bool(mask_hw[min(row, mask_hw.shape[0] - 1), min(column, mask_hw.shape[1] - 1)])
    points = outline_pct(region["value"])
    if not points:
        return True
    inside = False  # by the even-odd rule
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            inside = not inside
    return inside


def _in_box(boxes: Sequence[tuple[Box, Region]], prompt: Box) -> Region | None:
    """The object that fills a box best."""
    overlaps = [(_iou(box, prompt), -index) for index, (box, _) in enumerate(boxes)]
    overlap, index = max(overlaps, default=(0.0, 0))
    return boxes[-index][1] if overlap >= LEAST_OVERLAP else None


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _iou(a: Box, b: Box) -> float:
    common = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - common
    return common / union if union > 0 else 0.0
