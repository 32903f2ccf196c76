"""A simulated annotator: corrects a prediction with the truth at hand, as little as needed, like a person in a hurry.

What is good enough is left as it is; an outline that is off is redrawn under its region's id; a wrong label is changed;
what is missing is added, what is nothing is deleted.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from integration.polygons.convert import outline_mask
from integration.regions.read import AnnotatedObject, regions_to_objects
from integration.regions.write import polygon_shapes
from model.instance import iou, iou_matrix

Region = dict[str, Any]
Truth = Sequence[tuple[str, np.ndarray]]
# A person leaves an outline that covers the object this well, and takes one over that at least touches it so far.
GOOD_ENOUGH_IOU, SAME_OBJECT_IOU = 0.9, 0.4
# Seconds of a person: looking, and each action.
LOOK_S, CHANGE_S, DRAW_S, CLICK_S = 4.0, 9.0, 25.0, 2.0


@dataclass(frozen=True)
class Corrected:
    """A finished annotation.

    Attributes:
        result: regions to submit.
        lead_time_s: what a person would have taken.
        actions: how many of kept, moved, relabelled, added, deleted.
    """

    result: list[Region]
    lead_time_s: float
    actions: dict[str, int]


def correct(prediction: Sequence[Mapping[str, Any]], truth: Truth) -> Corrected:
    """Correct the regions of a prediction; `truth` has (label, bool mask H x W) of every object."""
    height, width = truth[0][1].shape if truth else (0, 0)
    shown = regions_to_objects(prediction).objects if prediction else ()
    pairs = _pairs(shown, truth)
    result: list[Region] = []
    actions = dict.fromkeys(("kept", "moved", "relabelled", "added", "deleted"), 0)
    for index, (label, mask_hw) in enumerate(truth):
        match = pairs.get(index)
        if match is None:
            result += draw_regions(label, mask_hw, width, height)
            actions["added"] += 1
            continue
        is_good = iou(match.mask_hw, mask_hw) >= GOOD_ENOUGH_IOU
        if match.label == label and is_good:
            result += [dict(region) for region in prediction if region.get("id") in match.region_ids]
            actions["kept"] += 1
            continue
        result += draw_regions(label, match.mask_hw if is_good else mask_hw, width, height, match.region_ids[0])
        actions["moved"] += not is_good
        actions["relabelled"] += match.label != label
    actions["deleted"] = len(shown) - len(pairs)
    return Corrected(result, _seconds(actions), actions)


def draw_regions(label: str, mask_hw: np.ndarray, width: int, height: int, region_id: str = "") -> list[Region]:
    """Polygons of an object as the editor submits them; parts name the first one as their parent."""
    outlined = outline_mask(mask_hw, tolerance_px=0.5, min_area_px=4.0)
    shapes = polygon_shapes(outlined, width=width, height=height, joined=True, max_vertices=None)
    first = region_id or secrets.token_hex(5)
    regions = []
    for number, shape in enumerate(shapes):
        region: Region = {
            "id": first if number == 0 else secrets.token_hex(5),
            "type": "polygonlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "origin": "prediction" if region_id else "manual",
            "value": {**shape.value, "polygonlabels": [label]},
        }
        if number:
            region["parentID"] = first
        regions.append(region)
    return regions


def poison_regions(truth: Truth, labels: Sequence[str], shift_px: int = 14) -> Truth:
    """Spoil the truth: every mask shifted, every label another one if there is one."""
    others = {label: labels[(number + 1) % len(labels)] for number, label in enumerate(labels)}
    shifted = [(others[label], _shifted(mask_hw, shift_px)) for label, mask_hw in truth]
    return [(label, mask_hw) for label, mask_hw in shifted if mask_hw.any()]


def _shifted(mask_hw: np.ndarray, by_px: int) -> np.ndarray:
    moved = np.zeros_like(mask_hw)
    moved[by_px:, by_px:] = mask_hw[:-by_px, :-by_px]
    return moved


def _pairs(shown: Sequence[AnnotatedObject], truth: Truth) -> dict[int, AnnotatedObject]:
    """By index of the truth: what was shown of it, each once."""
    overlaps = iou_matrix([mask_hw for _, mask_hw in truth], [drawn.mask_hw for drawn in shown])
    matches = zip(*linear_sum_assignment(-overlaps), strict=True)
    return {int(index): shown[place] for index, place in matches if overlaps[index, place] >= SAME_OBJECT_IOU}


def _seconds(actions: Mapping[str, int]) -> float:
    return (
        LOOK_S
        + CHANGE_S * actions["moved"]
        + DRAW_S * actions["added"]
        + CLICK_S * (actions["relabelled"] + actions["deleted"])
    )
