"""A prompt in pixels for the promptable model, and its answer as a Label Studio prediction.

Shapes: H, W the image's size in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from integration.label_studio.label_config import LabelConfig, Output
from integration.label_studio.prompts import Box, Click, PromptFields
from integration.label_studio.tasks import Prediction
from integration.regions.read import regions_to_objects
from integration.regions.write import build_prediction
from model.instance import Instance

#: Clicks that stand for a brush stroke, spread over it.
STROKE_CLICKS = 6


@dataclass(frozen=True)
class PixelPrompt:
    """A prompt in pixels: the fields of `model.prompts.answers.Prompt`."""

    box_xyxy: Box | None
    points: tuple[Click, ...]
    mask_hw: np.ndarray | None


def prompt_in_pixels(prompt: PromptFields, shape_hw: tuple[int, int]) -> PixelPrompt:
    """A prompt on an image of this height and width; boxes are cut to the image, a brush stroke becomes clicks."""
    height, width = shape_hw
    box = None
    if prompt["box_pct"]:
        x0, y0, x1, y1 = (min(max(float(value), 0.0), 100.0) for value in prompt["box_pct"])
        box = (x0 * width / 100, y0 * height / 100, x1 * width / 100, y1 * height / 100)
    points = [(x * width / 100, y * height / 100, bool(sign)) for x, y, sign in prompt["points_pct"]]
    mask = None
    if prompt["drawing"]:
        drawing = {**prompt["drawing"], "original_width": width, "original_height": height}
        objects = regions_to_objects([drawing], width=width, height=height).objects
        mask = objects[0].mask_hw if objects else None
        if mask is not None and box is None:
            points = [*_clicks_on(mask), *points]
            mask = None
    return PixelPrompt(box, tuple(points), mask)


def _clicks_on(stroke_hw: np.ndarray) -> list[Click]:
    """Positive clicks spread over a brush stroke, the one farthest from its edge first."""
    inside = ndimage.distance_transform_edt(np.pad(stroke_hw, 1))[1:-1, 1:-1]
    places = np.argwhere(inside >= 0.5 * inside.max())
    indices = [int(inside[tuple(places.T)].argmax())]
    distance = np.full(len(places), np.inf)
    for _ in range(min(STROKE_CLICKS, len(places)) - 1):
        distance = np.minimum(distance, ((places - places[indices[-1]]) ** 2).sum(1))
        indices.append(int(distance.argmax()))
    return [(float(x) + 0.5, float(y) + 0.5, True) for y, x in places[indices]]


def build_answer(
    instance: Instance,
    prompt: PromptFields,
    config: LabelConfig,
    *,
    width: int,
    height: int,
    model_version: str,
    output: Output,
    seed: str,
) -> Prediction:
    """The answer to a prompt as a prediction: one region with the annotator's label; thresholds do not count.

    Its id is the same for all prompts about one object, so that an accepted answer is replaced and not doubled.
    """
    # What the annotator draws with, else the first kind that the label config has for the label.
    output = replace(output, kind="auto" if output.kind == "all" else output.kind, parts="joined")
    if prompt["drawing"]:
        output = replace(output, kind="polygon" if prompt["box_pct"] else "brush")
    # The annotator pointed at this very object: it is shown whatever its score and size.
    shown_instance = replace(instance, label=prompt["label"], score=1.0)
    for smallest in (output, replace(output, min_area_px=0.0)):
        prediction, _ = build_prediction(
            [shown_instance],
            config,
            width=width,
            height=height,
            model_version=model_version,
            output=smallest,
            seed=f"{seed}:{prompt['region']}",
        )
        if prediction["result"]:
            break
    for region in prediction["result"]:
        region["score"] = round(instance.score, 4)
    return {**prediction, "score": round(instance.score, 4)}
