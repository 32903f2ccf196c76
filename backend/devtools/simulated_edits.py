"""`transfiner evaluate --edits`: the annotator's cost of shown regions, beside other ways to draw the same masks.

The table of actions and the rules are in `backend.devtools.edits`. Shapes: H, W image size; N vertices.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from tabulate import tabulate

from backend.devtools.edit_plan import GoodOutline
from backend.devtools.edits import CRUMB_PX, EditableObject, Edits
from backend.devtools.harness import label_config
from backend.errors import ServiceError
from integration.label_studio.label_config import Output, parse_label_config
from integration.polygons.contours import Polygon
from integration.polygons.convert import CrumbRule, outline_mask, polygons_to_mask, remove_crumbs, smooth_outline
from integration.polygons.joining import join_polygons, split_ring
from integration.regions.read import regions_to_objects
from integration.regions.write import PART_BY_PART, build_prediction
from model.instance import Instance, iou
from training.datasets import AnySet, Sample, usable_samples

Json = dict[str, Any]
#: Instances of an image, its height and width -> the regions that a person would see.
Drawer = Callable[[Sequence[Instance], int, int], list[EditableObject]]
#: Tolerances of the outlines that a person would click, the fewest clicks first.
_CLICK_TOLERANCES_PX = (3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.0)
#: Of the smooth outlines that are compared at equal IoU.
_COMPARED_TOLERANCES_PX = (0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
LITERAL, PRACTISED = ANNOTATORS = ("literal", "practised")
SERVED, BEFORE, OPENCV = "as served", "part by part, pixel edges", "OpenCV contours + Douglas-Peucker"


def drawers(classes: Sequence[str], shown_from: float) -> dict[str, Drawer]:
    """Functions that draw regions in the compared ways; OpenCV's only where it is installed."""
    config = parse_label_config(label_config(classes))

    def drawer(output: Output) -> Drawer:
        output = dataclasses.replace(output, score_threshold=shown_from)

        def draw(instances: Sequence[Instance], height: int, width: int) -> list[EditableObject]:
            prediction, _ = build_prediction(
                instances, config, width=width, height=height, model_version="", output=output
            )
            return shown_regions(prediction["result"], height, width)

        return draw

    def draw_with_opencv(instances: Sequence[Instance], height: int, width: int) -> list[EditableObject]:
        visible = [instance for instance in instances if instance.score >= shown_from]
        outlines_of_label = [
            (instance.label, opencv(instance.mask_hw, PART_BY_PART.tolerance_px)) for instance in visible
        ]
        rings = [(label, polygon.exterior) for label, polygons in outlines_of_label for polygon in polygons]
        regions = [_region(label, ring, height, width) for label, ring in rings if len(ring) > 2]
        return [region for region in regions if region.mask_hw.any()]

    ways = {SERVED: drawer(Output()), BEFORE: drawer(PART_BY_PART)}
    try:
        opencv(np.zeros((2, 2), dtype=bool), 1.0)
    except ServiceError:
        return ways
    return ways | {OPENCV: draw_with_opencv}


def opencv(mask_hw: np.ndarray, tolerance_px: float) -> list[Polygon]:
    """OpenCV's contours, which run through pixel centres, and its Douglas-Peucker; tolerance 0 keeps all corners."""
    try:
        import cv2
    except ModuleNotFoundError as error:
        fix = "pip install opencv-python-headless"
        raise ServiceError("The comparison needs OpenCV, which is not installed.", fix) from error
    contours, tree = cv2.findContours(mask_hw.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [cv2.approxPolyDP(ring, tolerance_px, True)[:, 0].astype(np.float64) for ring in contours]
    parents = [-1] * len(rings) if tree is None else tree[0][:, 3].tolist()
    return [
        Polygon(ring, tuple(hole for hole, owner in zip(rings, parents, strict=True) if owner == index), tolerance_px)
        for index, (ring, parent) in enumerate(zip(rings, parents, strict=True))
        if parent < 0
    ]


def shown_regions(result: Sequence[Mapping[str, Any]], height: int, width: int) -> list[EditableObject]:
    """Read each region of a prediction as an object of its own, as Label Studio counts them."""
    by_id: dict[str, list[Json]] = {}
    for entry in result:
        plain = {key: value for key, value in entry.items() if key != "parentID"}
        by_id.setdefault(str(entry.get("id")), []).append(plain)
    regions = []
    for entries in by_id.values():
        for item in regions_to_objects(entries, width=width, height=height).objects:
            points = next((entry["value"]["points"] for entry in entries if "points" in entry.get("value", {})), None)
            vertices = (
                np.array(points) * [width, height] / 100 if points else click_vertices(item.mask_hw, GoodOutline())
            )
            regions.append(EditableObject(item.label, item.mask_hw, vertices))
    return regions


def _region(label: str, ring: np.ndarray, height: int, width: int) -> EditableObject:
    return EditableObject(label, polygons_to_mask([Polygon(ring)], height, width), ring)


def click_vertices(mask_hw: np.ndarray, good: GoodOutline) -> np.ndarray:
    """The fewest vertices (N, 2) that a person would click for a good outline of a mask."""
    ways = (outline_mask, smooth_outline) if good.practised else (outline_mask,)
    return min((_fewest_clicks(mask_hw, way, good) for way in ways), key=len)


def _fewest_clicks(mask_hw: np.ndarray, outline: Callable[..., list[Polygon]], good: GoodOutline) -> np.ndarray:
    ring = np.empty((0, 2))
    for tolerance_px in _CLICK_TOLERANCES_PX:
        if tolerance_px > good.distance_px:
            continue
        polygons = outline(mask_hw, tolerance_px=tolerance_px)
        ring = join_polygons(polygons)
        if good.accepts(mask_hw, polygons_to_mask(polygons, *mask_hw.shape)):
            break
    return ring


def true_objects(sample: Sample, classes: Sequence[str], good: GoodOutline) -> list[EditableObject]:
    """The objects of a sample, without crowd regions; without crumbs if the annotator is practised."""
    return [
        _true_object(classes[number], mask_hw, good)
        for mask_hw, number, crowd in zip(sample.masks, sample.classes, sample.crowd, strict=True)
        if not crowd and mask_hw.any()
    ]


def _true_object(label: str, mask_hw: np.ndarray, good: GoodOutline) -> EditableObject:
    clean_hw = remove_crumbs(mask_hw, CrumbRule(CRUMB_PX, hole_px=CRUMB_PX)) if good.practised else mask_hw
    if not clean_hw.any():
        clean_hw = mask_hw
    vertices_px, ignored_hw = click_vertices(clean_hw, good), clean_hw ^ mask_hw
    drawn_hw = polygons_to_mask(split_ring(vertices_px), *mask_hw.shape)
    return EditableObject(label, clean_hw, vertices_px, ignored_hw, good.accepts(clean_hw, drawn_hw, ignored_hw))


def without_crowd(regions: Sequence[EditableObject], sample: Sample) -> list[EditableObject]:
    """Leave out regions that lie mostly in crowd regions: nobody corrects those."""
    crowd_hw = sample.masks[sample.crowd].any(axis=0)
    return [
        region
        for region in regions
        if 2 * np.count_nonzero(region.mask_hw & crowd_hw) <= np.count_nonzero(region.mask_hw)
    ]


class EqualIou:
    """Compares the vertices of smooth outlines with those along pixel edges, of the same masks at the same IoU."""

    def __init__(self, shown_from: float) -> None:
        self._shown_from = shown_from
        self._stairs: list[tuple[int, float]] = []
        self._smooth: dict[float, list[tuple[int, float]]] = {tolerance: [] for tolerance in _COMPARED_TOLERANCES_PX}

    def add(self, instances: Sequence[Instance]) -> None:
        """Outline the shown instances of an image in both ways."""
        output = Output()
        rule = CrumbRule(output.min_area_px, output.min_part_share, output.min_area_px, output.min_hole_share)
        for instance in instances:
            if instance.score < self._shown_from:
                continue
            mask_hw = remove_crumbs(instance.mask_hw, rule)
            if not mask_hw.any():
                continue
            probabilities = instance.probabilities
            patch = (probabilities.values, probabilities.box_xyxy) if probabilities else None
            self._stairs.append(_cost(outline_mask(mask_hw, tolerance_px=output.tolerance_px), mask_hw))
            for tolerance_px, figures in self._smooth.items():
                figures.append(_cost(smooth_outline(mask_hw, patch, tolerance_px=tolerance_px), mask_hw))

    def as_dict(self) -> Json:
        """Means over the masks; smooth vertices are interpolated between tolerances at the IoU of the others."""
        if not self._stairs:
            return {}
        vertices, mean_iou = np.mean(self._stairs, axis=0)
        curve = np.array([np.mean(figures, axis=0) for figures in self._smooth.values()])[::-1]
        smooth = float(np.interp(mean_iou, curve[:, 1], curve[:, 0]))
        return {
            "masks": len(self._stairs),
            "iou": float(mean_iou),
            "pixel_vertices": float(vertices),
            "smooth_vertices": smooth,
            "saved": 1 - smooth / float(vertices),
        }


def _cost(polygons: Sequence[Polygon], mask_hw: np.ndarray) -> tuple[int, float]:
    """Vertices of polygons, and their IoU with the mask."""
    filled_hw = polygons_to_mask(polygons, *mask_hw.shape)
    return sum(polygon.vertex_count for polygon in polygons), iou(filled_hw, mask_hw)


class Corrections:
    """The corrections of both annotators to the regions of a set, by the way these are drawn."""

    def __init__(self, good: GoodOutline, classes: Sequence[str]) -> None:
        self._good, self._classes = good, classes
        self._annotators = {name: dataclasses.replace(good, practised=name == PRACTISED) for name in ANNOTATORS}
        self._sums: dict[str, dict[str, Edits]] = {name: {} for name in ANNOTATORS}

    def add(self, sample: Sample, regions: Mapping[str, Sequence[EditableObject]]) -> None:
        """Correct the regions of one image, for each way to draw them."""
        regions_of_way = {way: without_crowd(way_regions, sample) for way, way_regions in regions.items()}
        for name, good in self._annotators.items():
            truth = true_objects(sample, self._classes, good)
            for way, way_regions in regions_of_way.items():
                self._sums[name].setdefault(way, Edits()).add(way_regions, truth, good)

    def outcome(self, name: str, source: str, shown_from: float) -> Json:
        """The figures as JSON."""
        literal = list(self._sums[LITERAL].values())
        return {
            "set": name,
            "source": source,
            "good": dataclasses.asdict(self._good),
            "shown_from": shown_from,
            "images": max((sums.images for sums in literal), default=0),
            "objects": max((sums.objects for sums in literal), default=0),
            "edits": {
                annotator: {way: sums.as_dict() for way, sums in of_way.items()}
                for annotator, of_way in self._sums.items()
            },
        }


def evaluate_edits(
    samples: AnySet,
    name: str,
    weights: Path,
    *,
    good: GoodOutline,
    shown_from: float,
    device: str,
    overrides: Sequence[str] = (),
) -> Json:
    """Predict a set and simulate its correction, once for each way to draw. Returns the outcome as JSON."""
    from model.inference.predictor import Predictor

    predictor = Predictor.from_checkpoint(weights, device=device, score_threshold=shown_from / 2, overrides=overrides)
    classes = samples.class_names
    ways = drawers(classes, shown_from)
    corrections, equal_iou = Corrections(good, classes), EqualIou(shown_from)
    with click.progressbar(length=len(samples), label=f"correcting {name}", file=sys.stderr) as bar:
        for sample, instances in _predicted(predictor, samples):
            corrections.add(sample, {way: draw(instances, *sample.image.shape[:2]) for way, draw in ways.items()})
            equal_iou.add(instances)
            bar.update(1)
    return corrections.outcome(name, str(weights), shown_from) | {"equal_iou": equal_iou.as_dict()}


def _predicted(predictor: Any, samples: AnySet) -> Iterable[tuple[Sample, list[Instance]]]:
    """Samples with the instances of the set's classes, a few at a time."""
    samples_left = (sample for _, sample in usable_samples(samples))
    while batch := list(islice(samples_left, predictor.images_at_once)):
        for sample, instances in zip(batch, predictor([sample.image for sample in batch]), strict=True):
            yield sample, [instance for instance in instances if instance.label in samples.class_names]


def edits_text(outcome: Json) -> str:
    """Format the outcome for people."""
    good = outcome["good"]
    digits = {"actions_per_object": ".2f", "seconds_per_object": ".1f", "untouched_share": ".1%"}
    digits |= {"regions_per_object": ".2f", "parts_per_object": ".2f", "vertices_per_object": ".1f"}
    counts = ("doubles", "false", "misses", "redrawn", "not_good")
    lines = [
        f"{outcome['images']} images of {outcome['set']}, {outcome['objects']} objects, {outcome['source']}, "
        f"scores from {outcome['shown_from']:g}",
        f"good: IoU of at least {good['iou']:g}, no outline point farther than {good['distance_px']:g} px",
    ]
    for annotator, ways in outcome["edits"].items():
        rows = [
            [way, *(format(sums[key], form) for key, form in digits.items()), "", *(sums[key] for key in counts)]
            for way, sums in ways.items()
        ]
        columns = (*(key.partition("_")[0] for key in digits), "in all:", *(key.replace("_", " ") for key in counts))
        names = (f"{annotator} annotator, an object:", *columns)
        lines.append(tabulate(rows, names, "plain", disable_numparse=True, colalign=("left", *["right"] * 12)))
    figures, parts = outcome["edits"][LITERAL][SERVED], outcome["edits"][PRACTISED][SERVED]["true_parts_per_object"]
    lines += [
        f"the truth has {figures['true_parts_per_object']:.2f} parts an object, {parts:.2f} without crumbs; doubles "
        f"are pairs of regions with IoU above {good['double_iou']:g}",
        f"{figures['border']} objects at the image's border have a region as served; {figures['border_reached']} of"
        " these reach it",
    ]
    if equal := outcome.get("equal_iou"):
        lines.append(
            f"outlines of the same {equal['masks']} masks at the same IoU with them, {equal['iou']:.4f}: "
            f"{equal['pixel_vertices']:.1f} vertices along pixel edges, {equal['smooth_vertices']:.1f} smooth "
            f"({-equal['saved']:+.0%})"
        )
    return "\n".join(lines)
