"""Instances of the model to predictions that Label Studio shows, and nothing dropped in silence.

An object is one region, because Label Studio counts regions. Only where the output settings ask for it is each part a
region of its own, whose `parentID` names the largest part. Region ids are hashes, so equal predictions are equal, and
unique: Label Studio merges regions with the same id.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from integration.label_studio.label_config import KINDS, Control, LabelConfig, Target
from integration.label_studio.tasks import Prediction, Region
from integration.polygons.convert import outline_mask, smooth_outline
from integration.polygons.crumbs import CrumbRule, reach_border, remove_crumbs
from integration.polygons.exact import Polygon
from integration.polygons.shared_edges import outline_masks
from integration.regions.settings import Output, Reason, Scorer, certainty
from integration.regions.shapes import (
    Shape,
    bitmask_shapes,
    brush_shapes,
    ellipse_shapes,
    has_holes,
    polygon_shapes,
    rectangle_shapes,
    vector_shapes,
)
from model.instance import Instance, iou_matrix

__all__ = ["Output", "Reason", "build_prediction", "certainty"]


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
    score = scorer(drawing.shown, drawing.hidden) if scorer else certainty(drawing.shown)
    return {"result": drawing.result, "score": score, "model_version": model_version}, drawing.dropped


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
        self._drawn: Counter[str] = Counter()
        self._shared: dict[tuple[int, float, float], list[Polygon]] = {}
        self._cleaned: dict[tuple[int, float], np.ndarray] = {}
        self._instances: Sequence[Instance] = ()
        self._overlap: np.ndarray | None = None
        self._shown_numbers: list[int] = []
        self.result: list[Region] = []
        self.shown: list[Instance] = []
        self.hidden: list[Instance] = []
        self.dropped: Counter[Reason] = Counter()

    def draw(self, instances: Sequence[Instance]) -> None:
        """Add the regions of all instances, the best first."""
        self._instances = instances
        classes = self._config.match(sorted({instance.label for instance in instances}))
        chosen = [self._choose(instance, classes.targets(instance.label)) for instance in instances]
        if self._output.shared_edges:
            self._share_edges(instances, chosen)
        for number in sorted(range(len(instances)), key=lambda n: -_sortable(instances[n].score)):
            instance = instances[number]
            reason = self._draw_instance(number, instance, chosen[number])
            if reason is None:
                self.shown.append(instance)
                self._shown_numbers.append(number)
            else:
                self.dropped[reason] += 1
                if reason == Reason.LOW_SCORE:
                    self.hidden.append(instance)
        over = self.dropped[Reason.OVER_LIMIT]
        if over and self.result:
            more = "1 more object was" if over == 1 else f"{over} more objects were"
            _note(self.result[0], f"{more} found and left out: the limit of regions is reached.")

    def _draw_instance(self, number: int, instance: Instance, targets: Sequence[Target]) -> Reason | None:
        """Add the regions of an instance; None, or the reason why it has none."""
        if not math.isfinite(instance.score):
            return Reason.NOT_A_NUMBER
        if not targets:
            return Reason.NO_LABEL
        reasons = [self._draw_target(number, instance, target) for target in targets]
        return None if None in reasons else reasons[0]

    def _share_edges(self, instances: Sequence[Instance], chosen: Sequence[Sequence[Target]]) -> None:
        """Outline together all instances that are drawn as polygons in the same way."""
        alike: dict[tuple[float, float], list[int]] = {}
        for number, targets in enumerate(chosen):
            ways = {self._way(t.control) for t in targets if self._may_share(instances[number], t)}
            for way in ways:
                alike.setdefault(way, []).append(number)
        for (tolerance_px, min_area_px), numbers in alike.items():
            masks_hw = [self._clean(number, min_area_px) for number in numbers]
            outlines = outline_masks(masks_hw, tolerance_px=tolerance_px, min_area_px=min_area_px)
            for number, outlined in zip(numbers, outlines, strict=True):
                self._shared[number, tolerance_px, min_area_px] = outlined

    def _may_share(self, instance: Instance, target: Target) -> bool:
        control = target.control
        if control.kind not in ("polygon", "vector") or control.max_vertices or self._output.max_vertices:
            return False
        return instance.score >= self._threshold(target)

    def _way(self, control: Control) -> tuple[float, float]:
        """Tolerance and minimum area of a control's polygons."""
        own = control.tolerance_px
        return self._output.tolerance_px if own is None else own, self._min_area_px(control)

    def _choose(self, instance: Instance, targets: Sequence[Target]) -> list[Target]:
        """The targets to draw on: one of each kind for "all", else one; none of none."""
        if not targets:
            return []
        by_kind = {target.control.kind: target for target in reversed(targets)}
        if self._output.kind == "all":
            # An ellipse fits too loosely to be known again as the object of the other outlines.
            return [by_kind[kind] for kind in KINDS if kind in by_kind and (kind != "ellipse" or len(by_kind) == 1)]
        chosen = targets[0] if self._output.kind == "auto" else by_kind.get(self._output.kind, targets[0])
        masks = [kind for kind in ("brush", "bitmask") if kind in by_kind]
        if self._output.holes == "brush" and chosen.control.kind in ("polygon", "vector") and masks:
            min_area_px = self._min_area_px(chosen.control)
            return [by_kind[masks[0]] if has_holes(instance.mask_hw, min_area_px) else chosen]
        return [chosen]

    def _is_double(self, number: int) -> bool:
        """Whether an object that is shown already covers this one."""
        if self._output.double_iou >= 1 or not self._shown_numbers:
            return False
        if self._overlap is None:
            min_area_px = self._output.min_area_px
            masks_hw = [self._clean(number, min_area_px) for number in range(len(self._instances))]
            self._overlap = iou_matrix(masks_hw, masks_hw)
        return bool(self._overlap[number, self._shown_numbers].max() > self._output.double_iou)

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
        if self._is_double(number):
            return Reason.DOUBLE
        if self._drawn[control.name] >= (control.max_regions or self._output.max_regions):
            return Reason.OVER_LIMIT
        shapes = self._shapes(number, instance, control)
        if not shapes:
            return Reason.TOO_SMALL
        self._drawn[control.name] += 1
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
        outlined = self._shared.get((number, tolerance_px, min_area_px))
        if outlined is None:
            outlined = self._outline(instance, mask_hw, tolerance_px, max_vertices, min_area_px)
        height, width = mask_hw.shape
        joined = self._output.parts == "joined"
        shapes = polygon_shapes(outlined, width=width, height=height, joined=joined, max_vertices=max_vertices)
        return vector_shapes(shapes) if control.kind == "vector" else shapes

    def _outline(
        self, instance: Instance, mask_hw: np.ndarray, tolerance_px: float, max_vertices: int | None, min_area_px: float
    ) -> list[Polygon]:
        if self._output.outline == "pixels":
            return outline_mask(mask_hw, tolerance_px=tolerance_px, max_vertices=max_vertices, min_area_px=min_area_px)
        known = instance.probabilities
        return smooth_outline(
            mask_hw,
            (known.values, known.box_xyxy) if known else None,
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
    """Say a sentence in `meta.text`, which the editor shows and keeps on submit (measured); a region says one."""
    if sentence:
        region.setdefault("meta", {"text": [sentence]})


def _sortable(score: float) -> float:
    return score if math.isfinite(score) else -math.inf
