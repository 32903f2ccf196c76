"""Draw the model's instances as a Label Studio prediction, and count those left out by their reason.

An object is one region, because Label Studio counts regions. Only where the output settings ask for it is each part a
region of its own, whose `parentID` names the largest part. Region ids are hashes, so equal predictions are equal, and
unique: Label Studio merges regions with the same id.

Geometries are in percent of the upright image, 0..100. Shapes: H, W mask size; N points.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypedDict

import numpy as np

from integration.label_studio.label_config import KINDS, Control, LabelConfig, Output, Target
from integration.label_studio.tasks import Prediction, Region
from integration.polygons.contours import Polygon, exact_polygons
from integration.polygons.convert import (
    CrumbRule,
    outline_mask,
    outline_masks,
    reach_border,
    remove_crumbs,
    smooth_outline,
)
from integration.polygons.joining import join_polygons
from integration.regions.shapes import encode_bitmask, encode_brush_mask
from model.instance import Instance, box_of, iou, iou_matrix

#: (instances shown, instances hidden for their score) -> score of the whole prediction, 0..1; the lowest comes first.
Scorer = Callable[[Sequence[Instance], Sequence[Instance]], float]
#: Decimals of a percent kept: 5e-9 % of 100,000 pixels is far below what rasterising at pixel centres can see.
_DECIMALS = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """One region's geometry.

    Attributes:
        note: what a person should know about it, for `meta.text`; at most one sentence.
    """

    value: dict[str, Any]
    note: str = ""


def polygon_shapes(
    polygons: Sequence[Polygon], *, width: int, height: int, joined: bool, max_vertices: int | None
) -> list[Shape]:
    """Closed polygons whose holes are cut open to the outside, the largest first.

    Args:
        joined: one polygon for the object, its parts joined by cuts; else one for each part, the largest first.
        max_vertices: the limit that the polygons were simplified for; a note says where it is exceeded.
    """
    parts = sorted(polygons, key=lambda polygon: -polygon.area_px)
    objects = [parts] if joined and parts else [[polygon] for polygon in parts]
    rings = [join_polygons(parts) for parts in objects]
    regions = []
    for number, ring in enumerate(rings, start=1):
        note = f"Part {number} of {len(rings)} of one object." if len(rings) > 1 else ""
        if max_vertices is not None and len(ring) > max_vertices:
            note = f"More than {max_vertices} points, because its parts would overlap with fewer."
        value = {"points": percent(ring, width, height).tolist(), "closed": True}
        regions.append(Shape(value, note))
    return regions


def brush_shapes(mask_hw: np.ndarray) -> list[Shape]:
    """The exact mask, parts and holes included, as Label Studio's run-length code."""
    return [Shape({"format": "rle", "rle": encode_brush_mask(mask_hw)})]


def bitmask_shapes(mask_hw: np.ndarray) -> list[Shape]:
    """The exact mask, parts and holes included, as a PNG."""
    return [Shape({"imageDataURL": encode_bitmask(mask_hw)})]


def rectangle_shapes(
    mask_hw: np.ndarray, box_xyxy: tuple[float, float, float, float], *, min_area_px: float
) -> list[Shape]:
    """The box around the mask; the detector's box where the mask is empty."""
    box = np.array(box_of(mask_hw) if mask_hw.any() else box_xyxy, dtype=np.float64).reshape(2, 2)
    height, width = mask_hw.shape
    (x, y), (right, bottom) = percent(box, width, height)
    area_px = (right - x) * (bottom - y) * width * height / 1e4
    if not area_px >= max(min_area_px, 1e-9):  # also catches boxes that are not numbers
        return []
    size = {"width": round(right - x, _DECIMALS), "height": round(bottom - y, _DECIMALS)}
    return [Shape({"x": float(x), "y": float(y), **size, "rotation": 0})]


def vector_shapes(polygons: Sequence[Shape]) -> list[Shape]:
    """The same outlines as closed paths of straight edges (`vertices` in place of `points`)."""
    regions = []
    for shape in polygons:
        vertices = [
            {"id": f"v{number}", "x": x, "y": y, "isBezier": False, "prevPointId": f"v{number - 1}" if number else None}
            for number, (x, y) in enumerate(shape.value["points"])
        ]
        regions.append(replace(shape, value={"vertices": vertices, "closed": True}))
    return regions


def ellipse_shapes(mask_hw: np.ndarray) -> list[Shape]:
    """The ellipse with the centre, area and second moments of the mask; its note says how well it fits.

    Second moments of an ellipse: its half axes are twice their square roots; scaled to the mask's area.
    """
    area_px = int(mask_hw.sum())
    height, width = mask_hw.shape
    points = np.argwhere(mask_hw)[:, ::-1] + 0.5
    centre = points.mean(axis=0)
    # 1/12: the second moment of a pixel about its own centre.
    moments, axes = np.linalg.eigh(np.cov((points - centre).T, bias=True).reshape(2, 2) + np.eye(2) / 12)
    long, short = np.sqrt(moments[::-1] * area_px / (math.pi * np.sqrt(moments.prod())))
    angle = math.atan2(axes[1, 1], axes[0, 1]) % math.pi
    y, x = np.mgrid[:height, :width] + 0.5
    along = (x - centre[0]) * math.cos(angle) + (y - centre[1]) * math.sin(angle)
    across = (y - centre[1]) * math.cos(angle) - (x - centre[0]) * math.sin(angle)
    overlap = iou((along / long) ** 2 + (across / short) ** 2 <= 1, mask_hw)
    # Label Studio takes no radius above half the image.
    size = {
        "radiusX": round(min(100 * float(long) / width, 50.0), _DECIMALS),
        "radiusY": round(min(100 * float(short) / height, 50.0), _DECIMALS),
        "rotation": round(math.degrees(angle), _DECIMALS),
    }
    x_pct, y_pct = percent(centre, width, height)
    return [Shape({"x": float(x_pct), "y": float(y_pct), **size}, f"Ellipse with IoU {overlap:.2f}.")]


def has_holes(mask_hw: np.ndarray, min_area_px: float) -> bool:
    """Whether a mask has a hole of at least `min_area_px`."""
    return any(polygon.holes for polygon in exact_polygons(mask_hw, min_area_px=min_area_px))


def percent(points_px: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixel edges (N, 2) to percent of the image, clamped: Label Studio's validation refuses 100.0000001."""
    return np.clip(np.round(points_px * 100 / np.array([width, height]), _DECIMALS), 0, 100)


#: How predictions were drawn before objects became one region each: a region a part, along the edges of pixels.
PART_BY_PART = Output(
    min_part_share=0.0, min_hole_share=0.0, border_px=0, parts="separate", outline="pixels", double_iou=1.0
)


class Reason(StrEnum):
    """Why an instance has no region."""

    NO_LABEL = "no label for its class"
    LOW_SCORE = "below the score threshold"
    OVER_LIMIT = "over the limit of regions"
    DOUBLE = "overlaps a better scored object too much"
    PART = "lies inside a better scored object of its class"
    TOO_SMALL = "smaller than the minimum area"
    NOT_A_NUMBER = "its score is not a number"


def build_prediction(
    instances: Sequence[Instance],
    label_config: LabelConfig,
    *,
    width: int,
    height: int,
    model_version: str,
    output: Output | None = None,
    seed: str = "",
    scorer: Scorer | None = None,
) -> tuple[Prediction, Counter[Reason]]:
    """Draw instances as one Label Studio prediction.

    Args:
        seed: task and image, so that ids differ between tasks.
        scorer: of the whole prediction; `certainty` of what is shown when None.

    Returns:
        {"result": regions, best score first, "score", "model_version"}; how many instances were left out, by reason.

    Raises:
        LabelConfigError: the label config is not supported.
    """
    label_config.require_supported()
    drawing = _Drawing(label_config, output or Output(), width, height, f"{seed}|{model_version}")
    drawing.draw(instances)
    score = scorer(drawing.shown_instances, drawing.hidden_instances) if scorer else certainty(drawing.shown_instances)
    return {"result": drawing.result, "score": score, "model_version": model_version}, drawing.left_out_counts


def certainty(instances: Sequence[Instance]) -> float:
    """The score of a whole prediction; Label Studio's uncertainty sampling shows the lowest first.

    An instance is as certain as its detection and its boundary: score * (1 - uncertainty). The image gets the mean
    of the average and of the worst instance: one bad object is found among many good ones, and many doubtful
    objects come before one. An image with nothing found gets 0: either it is empty, which is quickly confirmed, or
    the model is blind there, which is what it should learn first.
    """
    values = [min(max(i.score, 0.0), 1.0) * (1 - _unit(i.uncertainty)) for i in instances]
    if not values:
        return 0.0
    return round((sum(values) / len(values) + min(values)) / 2, 6)


def _unit(uncertainty: float) -> float:
    return min(max(uncertainty, 0.0), 1.0) if math.isfinite(uncertainty) else 1.0


class _Size(TypedDict):
    original_width: int
    original_height: int
    image_rotation: int


class _Drawing:
    """The regions of one prediction while they are drawn."""

    def __init__(self, label_config: LabelConfig, output: Output, width: int, height: int, seed: str) -> None:
        self._config = label_config
        self._output = output
        self._size: _Size = {"original_width": width, "original_height": height, "image_rotation": 0}
        self._seed = seed
        self._counts: Counter[str] = Counter()
        self._shared: dict[tuple[int, float, float], list[Polygon]] = {}
        self._cleaned: dict[tuple[int, float], np.ndarray] = {}
        self._instances: Sequence[Instance] = ()
        self._overlap: np.ndarray | None = None
        self._cover = np.zeros((0, 0))
        self._shown_numbers: list[int] = []
        self.result: list[Region] = []
        self.shown_instances: list[Instance] = []
        self.hidden_instances: list[Instance] = []
        self.left_out_counts: Counter[Reason] = Counter()

    def draw(self, instances: Sequence[Instance]) -> None:
        """Add the regions of all instances, the best first."""
        self._instances = instances
        classes = self._config.match(sorted({instance.label for instance in instances}))
        targets = [self._choose(instance, classes.targets(instance.label)) for instance in instances]
        if self._output.shared_edges:
            self._share_edges(instances, targets)
        for number in sorted(range(len(instances)), key=lambda n: -_sortable(instances[n].score)):
            instance = instances[number]
            reason = self._draw_instance(number, instance, targets[number])
            if reason is None:
                self.shown_instances.append(instance)
                self._shown_numbers.append(number)
            else:
                self.left_out_counts[reason] += 1
                if reason == Reason.LOW_SCORE:
                    self.hidden_instances.append(instance)
        over_count = self.left_out_counts[Reason.OVER_LIMIT]
        if over_count and self.result:
            count_text = "1 more object was" if over_count == 1 else f"{over_count} more objects were"
            _note(self.result[0], f"{count_text} found and left out: the limit of regions is reached.")

    def _draw_instance(self, number: int, instance: Instance, targets: Sequence[Target]) -> Reason | None:
        """Add the regions of an instance; None, or the reason why it has none."""
        if not math.isfinite(instance.score):
            return Reason.NOT_A_NUMBER
        if not targets:
            return Reason.NO_LABEL
        reasons = [self._draw_target(number, instance, target) for target in targets]
        return None if None in reasons else reasons[0]

    def _share_edges(self, instances: Sequence[Instance], targets_by_instance: Sequence[Sequence[Target]]) -> None:
        """Outline together all instances that are drawn as polygons in the same way."""
        numbers_by_way: dict[tuple[float, float], list[int]] = {}
        for number, targets in enumerate(targets_by_instance):
            ways = {self._way(t.control) for t in targets if self._may_share(instances[number], t)}
            for way in ways:
                numbers_by_way.setdefault(way, []).append(number)
        for (tolerance_px, min_area_px), numbers in numbers_by_way.items():
            masks_hw = [self._clean(number, min_area_px) for number in numbers]
            outlines = outline_masks(masks_hw, tolerance_px=tolerance_px, min_area_px=min_area_px)
            for number, polygons in zip(numbers, outlines, strict=True):
                self._shared[number, tolerance_px, min_area_px] = polygons

    def _may_share(self, instance: Instance, target: Target) -> bool:
        control = target.control
        if control.kind not in ("polygon", "vector") or control.max_vertices or self._output.max_vertices:
            return False
        return instance.score >= self._threshold(target)

    def _way(self, control: Control) -> tuple[float, float]:
        """Tolerance and minimum area of a control's polygons."""
        tolerance_px = control.tolerance_px
        return self._output.tolerance_px if tolerance_px is None else tolerance_px, self._min_area_px(control)

    def _choose(self, instance: Instance, targets: Sequence[Target]) -> list[Target]:
        """The targets to draw on: one of each kind for "all", else one; [] where there are none."""
        if not targets:
            return []
        by_kind = {target.control.kind: target for target in reversed(targets)}
        if self._output.kind == "all":
            # An ellipse fits too loosely to be read back as the same object as the other outlines.
            return [by_kind[kind] for kind in KINDS if kind in by_kind and (kind != "ellipse" or len(by_kind) == 1)]
        target = targets[0] if self._output.kind == "auto" else by_kind.get(self._output.kind, targets[0])
        masks = [kind for kind in ("brush", "bitmask") if kind in by_kind]
        if self._output.holes == "brush" and target.control.kind in ("polygon", "vector") and masks:
            min_area_px = self._min_area_px(target.control)
            return [by_kind[masks[0]] if has_holes(instance.mask_hw, min_area_px) else target]
        return [target]

    def _repeats(self, number: int) -> Reason | None:
        """The reason to leave out an object that is a shown one again, or a part of it; None if it is neither."""
        output = self._output
        if output.double_iou >= 1 or not self._shown_numbers:
            return None
        if self._overlap is None:
            masks_hw = [self._clean(number, output.min_area_px) for number in range(len(self._instances))]
            areas = np.array([np.count_nonzero(mask_hw) for mask_hw in masks_hw])
            self._overlap = iou_matrix(masks_hw, masks_hw)
            # The share of the object of the row that lies in the one of the column: from their IoU and areas.
            intersections = self._overlap / (1 + self._overlap) * (areas[:, None] + areas)
            self._cover = intersections / np.maximum(areas[:, None], 1)
        if self._overlap[number, self._shown_numbers].max() > output.double_iou:
            return Reason.DOUBLE
        label = self._instances[number].label
        wholes = [shown_number for shown_number in self._shown_numbers if self._instances[shown_number].label == label]
        if wholes and self._cover[number, wholes].max() > output.part_cover:
            return Reason.PART
        return None

    def _clean(self, number: int, min_area_px: float) -> np.ndarray:
        """The mask of an instance as it is drawn; with a minimum area of 0 exactly as it is."""
        key = number, min_area_px
        if key not in self._cleaned:
            output, mask_hw = self._output, self._instances[number].mask_hw
            if min_area_px > 0:
                mask_hw = reach_border(mask_hw, output.border_px)
            has_rule = min_area_px > 0 and (output.min_part_share or output.min_hole_share)
            rule = CrumbRule(min_area_px, output.min_part_share, min_area_px, output.min_hole_share)
            self._cleaned[key] = remove_crumbs(mask_hw, rule) if has_rule else mask_hw
        return self._cleaned[key]

    def _draw_target(self, number: int, instance: Instance, target: Target) -> Reason | None:
        control = target.control
        if instance.score < self._threshold(target):
            return Reason.LOW_SCORE
        if reason := self._repeats(number):
            return reason
        if self._counts[control.name] >= (control.max_regions or self._output.max_regions):
            return Reason.OVER_LIMIT
        shapes = self._shapes(number, instance, control)
        if not shapes:
            return Reason.TOO_SMALL
        self._counts[control.name] += 1
        self._add(number, instance, target, shapes)
        return None

    def _shapes(self, number: int, instance: Instance, control: Control) -> list[Shape]:
        tolerance_px, min_area_px = self._way(control)
        mask_hw = self._clean(number, min_area_px)
        if control.kind == "rectangle":
            return rectangle_shapes(mask_hw, instance.box_xyxy, min_area_px=min_area_px)
        if of_mask := {"brush": brush_shapes, "bitmask": bitmask_shapes, "ellipse": ellipse_shapes}.get(control.kind):
            return of_mask(mask_hw) if np.count_nonzero(mask_hw) >= max(min_area_px, 1) else []
        max_vertices = control.max_vertices or self._output.max_vertices
        polygons = self._shared.get((number, tolerance_px, min_area_px))
        if polygons is None:
            polygons = self._outline(instance, mask_hw, tolerance_px, max_vertices, min_area_px)
        height, width = mask_hw.shape
        joined = self._output.parts == "joined"
        shapes = polygon_shapes(polygons, width=width, height=height, joined=joined, max_vertices=max_vertices)
        return vector_shapes(shapes) if control.kind == "vector" else shapes

    def _outline(
        self, instance: Instance, mask_hw: np.ndarray, tolerance_px: float, max_vertices: int | None, min_area_px: float
    ) -> list[Polygon]:
        if self._output.outline == "pixels":
            return outline_mask(mask_hw, tolerance_px=tolerance_px, max_vertices=max_vertices, min_area_px=min_area_px)
        probabilities = instance.probabilities
        return smooth_outline(
            mask_hw,
            (probabilities.values, probabilities.box_xyxy) if probabilities else None,
            tolerance_px=tolerance_px,
            max_vertices=max_vertices,
            min_area_px=min_area_px,
            border_px=self._output.border_px,
        )

    def _add(self, number: int, instance: Instance, target: Target, shapes: Sequence[Shape]) -> None:
        first_id = self._id(number, target, 0)
        for part, shape in enumerate(shapes):
            control = target.control
            region: Region = {
                "id": self._id(number, target, part),
                "type": control.labels_type,
                "from_name": control.labels_name,
                "to_name": control.to_name,
                "value": {**shape.value, control.labels_type: [target.label.value]},
                **self._size,
                "score": round(min(max(instance.score, 0.0), 1.0), 6),
            }
            if part:
                region["parentID"] = first_id
            _note(region, shape.note)
            if control.is_paired:  # geometry and labels have tags of their own: two entries with one id
                self.result.append({**region, "type": control.kind, "from_name": control.name, "value": shape.value})
            self.result.append(region)

    def _id(self, number: int, target: Target, part: int) -> str:
        text = f"{self._seed}|{number}|{target.control.name}|{target.label.value}|{part}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _threshold(self, target: Target) -> float:
        for threshold in (target.label.score_threshold, target.control.score_threshold):
            if threshold is not None:
                return threshold
        return self._output.score_threshold

    def _min_area_px(self, control: Control) -> float:
        return self._output.min_area_px if control.min_area_px is None else control.min_area_px


def _note(region: Region, sentence: str) -> None:
    """Put a sentence into `meta.text`, which the editor shows and keeps on submit (measured); the first stays."""
    if sentence:
        region.setdefault("meta", {"text": [sentence]})


def _sortable(score: float) -> float:
    return score if math.isfinite(score) else -math.inf
