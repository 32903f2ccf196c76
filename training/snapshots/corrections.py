"""Corrections by annotators: match each annotated object to the predicted object that it came from, and compare them.

An annotated object is the predicted one with the same region id (Label Studio keeps ids when a person edits), else the
one whose mask it overlaps most. Unmatched predicted objects were deleted, unmatched annotated objects were added.

The work of a correction is counted in actions of the hand, one for a vertex dragged, clicked or removed:

    kept        0
    moved       m = max(1, vertices of the annotated outline off the predicted one, and the reverse: the larger count)
    added       3 + v      (choose the label, begin, close; v vertices clicked)
    deleted     2          (select, delete)
    relabelled  2 + (0 if the outline was kept, else m)
    a moved or relabelled outline costs at most 2 + 3 + v: nobody edits what is quicker to delete and draw again

The edit of an image is the sum over its objects. Vertices are those of outlines simplified as predictions are, so a
brush stroke and a polygon of the same mask cost the same; "off" is farther than `ACCEPTED_PX`.

A snapshot's report counts them per label and in all, as JSON and as a table. A predicted object counts under the label
it was shown with, an added one under the label it was given. An annotation's seconds are shared out to its objects by
1 + cost: everything is looked at, and work takes longer. Pictures show the objects whose outlines moved farthest.

Shapes: H, W mask size; N vertices.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate

from model.instance import iou, iou_matrix
from training.datasets.pictures import captioned, close_up, in_grid
from training.metrics.boundary import OutlineDistance, compare_outlines, moved_band

Kind = Literal["kept", "moved", "relabelled", "added", "deleted"]
KINDS: tuple[Kind, ...] = ("kept", "moved", "relabelled", "added", "deleted")
#: Vertices (N, 2) of all rings of a bool H x W mask, as a person sees them.
Outliner = Callable[[np.ndarray], np.ndarray]


class Drawn(Protocol):
    """An object of a prediction or of an annotation.

    Its class; bool H x W with at least a pixel; ids of its parts in Label Studio, () when it has none; the score of the
    detection, None when a person drew it.
    """

    @property
    def label(self) -> str: ...
    @property
    def mask_hw(self) -> np.ndarray: ...
    @property
    def region_ids(self) -> tuple[str, ...]: ...
    @property
    def score(self) -> float | None: ...


#: An outline nowhere farther than this from the predicted one was kept; a vertex this close to it was not moved.
KEPT_PX, ACCEPTED_PX = 1.0, 2.0
#: Least IoU of an annotated object with the predicted one that it came from, where they share no region id.
SAME_IOU = 0.5
#: Width of the moved band, to either side of the moved stretch.
BAND_PX = 4.0
#: Actions besides the vertices, see above.
ACTIONS_ADDED, ACTIONS_DELETED, ACTIONS_RELABELLED = 3.0, 2.0, 2.0
#: Weights in finetuning: of unchanged objects (the model knows those), of changed or added ones, and of those for which
#: no prediction was shown.
WEIGHT_KEPT, WEIGHT_CORRECTED, WEIGHT_UNSEEN = 0.5, 2.0, 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """Correction of one object.

    Attributes:
        kind: "relabelled" also when its outline was moved as well; `mean_px` tells.
        label: of the annotation; of the prediction for a deleted object.
        predicted_label: None for an added object.
        score: of the predicted object.
        annotated: its number in the annotation; None when deleted.
        predicted: its number in the prediction; None when added.
        iou: of the two masks; mean_px, max_px: distance of their outlines. 0 for added and deleted objects.
        vertices: moved, or drawn anew.
        cost: actions of the hand, see the module.
        weight: in finetuning.
        moved_band_hw: where the outline was moved; None when it was not.
    """

    kind: Kind
    label: str
    predicted_label: str | None = None
    score: float | None = None
    annotated: int | None = None
    predicted: int | None = None
    iou: float = 0.0
    mean_px: float = 0.0
    max_px: float = 0.0
    vertices: int = 0
    cost: float = 0.0
    weight: float = 0.0
    moved_band_hw: np.ndarray | None = None


def find_corrections(
    predicted: Sequence[Drawn] | None, annotated: Sequence[Drawn], outline_px: Outliner
) -> list[Correction]:
    """Compare the objects of one image.

    Args:
        predicted: the prediction shown; None when there was none, or it is not known any more.

    Returns:
        One correction for each annotated object, in their order, then one for each deleted object.
    """
    predictions = list(predicted or ())
    partner = match_objects(predictions, annotated)
    corrections = []
    for number, annotation in enumerate(annotated):
        origin = partner.get(number)
        if origin is None:
            weight = WEIGHT_UNSEEN if predicted is None else WEIGHT_CORRECTED
            corrections.append(_added(number, annotation, outline_px, weight))
        else:
            corrections.append(_edited(number, annotation, origin, predictions[origin], outline_px))
    matched = set(partner.values())
    return corrections + [_deleted(n, prediction) for n, prediction in enumerate(predictions) if n not in matched]


def match_objects(predicted: Sequence[Drawn], annotated: Sequence[Drawn]) -> dict[int, int]:
    """Match annotated to predicted objects, by region id first and by IoU second; objects are given by number."""
    partner: dict[int, int] = {}
    id_matches = [
        (-len(shared_ids), number, origin)
        for number, annotation in enumerate(annotated)
        for origin, prediction in enumerate(predicted)
        if (shared_ids := set(annotation.region_ids) & set(prediction.region_ids))
    ]
    for _, number, origin in sorted(id_matches):
        if number not in partner and origin not in partner.values():
            partner[number] = origin
    unmatched = [number for number in range(len(annotated)) if number not in partner]
    free = [origin for origin in range(len(predicted)) if origin not in partner.values()]
    masks, predicted_masks = [annotated[number].mask_hw for number in unmatched], [predicted[n].mask_hw for n in free]
    overlap = iou_matrix(masks, predicted_masks)
    if overlap.size:
        # Of equal overlaps, the one with the same label.
        same_label = np.array(
            [[annotated[number].label == predicted[origin].label for origin in free] for number in unmatched]
        )
        overlap = np.where(overlap >= SAME_IOU, overlap + 1e-6 * same_label, 0)
        for row, column in zip(*linear_sum_assignment(-overlap), strict=True):
            if overlap[row, column] > 0:
                partner[unmatched[row]] = free[column]
    return partner


def edit_cost(corrections: Sequence[Correction]) -> float:
    """Actions of the hand that an image took."""
    return float(sum(correction.cost for correction in corrections))


def _added(number: int, annotation: Drawn, outline_px: Outliner, weight: float) -> Correction:
    vertices = len(outline_px(annotation.mask_hw))
    cost = ACTIONS_ADDED + vertices
    return Correction("added", annotation.label, annotated=number, vertices=vertices, cost=cost, weight=weight)


def _deleted(number: int, prediction: Drawn) -> Correction:
    return Correction(
        "deleted", prediction.label, prediction.label, prediction.score, predicted=number, cost=ACTIONS_DELETED
    )


def _edited(number: int, annotation: Drawn, origin: int, prediction: Drawn, outline_px: Outliner) -> Correction:
    overlap, mean_px, max_px, vertices, band_hw, redraw_cost = 1.0, 0.0, 0.0, 0, None, 0.0
    if not np.array_equal(annotation.mask_hw, prediction.mask_hw):
        distance = compare_outlines(annotation.mask_hw, prediction.mask_hw, margin_px=int(BAND_PX) + 2)
        overlap, mean_px, max_px = iou(annotation.mask_hw, prediction.mask_hw), distance.mean_px, distance.max_px
        if max_px > KEPT_PX:
            vertices, redraw_cost = _moved_vertices(annotation, prediction, distance, outline_px)
            band_hw = moved_band(annotation.mask_hw, prediction.mask_hw, distance, accepted_px=KEPT_PX, band_px=BAND_PX)
    is_relabelled = annotation.label != prediction.label
    kind: Kind = "relabelled" if is_relabelled else "moved" if vertices else "kept"
    cost = ACTIONS_RELABELLED * is_relabelled + vertices
    return Correction(
        kind,
        annotation.label,
        prediction.label,
        prediction.score,
        number,
        origin,
        overlap,
        mean_px,
        max_px,
        vertices,
        cost=min(cost, ACTIONS_DELETED + redraw_cost) if vertices else cost,
        weight=WEIGHT_KEPT if kind == "kept" else WEIGHT_CORRECTED,
        moved_band_hw=band_hw,
    )


def _moved_vertices(
    annotation: Drawn, prediction: Drawn, distance: OutlineDistance, outline_px: Outliner
) -> tuple[int, float]:
    """Number of vertices that had to be moved, at least one; and the cost of drawing the object anew."""
    new_px, old_px = outline_px(annotation.mask_hw), outline_px(prediction.mask_hw)
    new_count = distance.far_points(new_px, of_other=False, accepted_px=ACCEPTED_PX)
    old_count = distance.far_points(old_px, of_other=True, accepted_px=ACCEPTED_PX)
    return max(1, new_count, old_count), ACTIONS_ADDED + len(new_px)


@dataclass(frozen=True, slots=True, eq=False)
class DrawnObject:
    """A `Drawn` of plain values, for objects that do not come from Label Studio."""

    label: str
    mask_hw: np.ndarray
    region_ids: tuple[str, ...] = ()
    score: float | None = None


Json = dict[str, Any]
#: Kinds of corrections of objects that were shown; the report's columns.
SHOWN = ("kept", "moved", "relabelled", "deleted")
#: The label of images without any object, which cost time too.
NO_OBJECT = "(no object)"
BEFORE_RGB, AFTER_RGB = (255, 110, 0), (0, 230, 255)
_TILE_PX, _GAP_PX, _COLUMNS = 240, 6, 4


def image_entry(
    corrections: Sequence[Correction],
    *,
    sha256: str,
    task_id: int,
    annotation_ids: Sequence[int],
    seconds: float | None,
    shown: bool,
    model_version: str = "",
    prediction_score: float | None = None,
) -> Json:
    """Entry of one image in the report.

    Args:
        sha256: of its content.
        seconds: spent on it; None when unknown.
        shown: whether a prediction was shown and is known.
        model_version: of that prediction; prediction_score: its score.
    """
    return {
        "sha256": sha256,
        "task_id": task_id,
        "annotation_ids": sorted(annotation_ids),
        "seconds": seconds,
        "shown": shown,
        "model_version": model_version,
        "prediction_score": prediction_score,
        "cost": round(sum(correction.cost for correction in corrections), 3),
        "objects": [_object_entry(correction) for correction in corrections],
    }


def build_correction_report(images: Iterable[Json], left_out: Sequence[Json] = ()) -> Json:
    """Build the report of a snapshot.

    Args:
        images: from `image_entry`.
        left_out: {task, annotation, region, reason} of each region that does not count.

    Returns:
        {"totals", "labels": {label: figures}, "images", "left_out"}, images by content hash. Figures: predicted, kept,
        moved, relabelled, deleted, added, unseen (drawn where no prediction was shown), acceptance (kept / predicted;
        None without predictions), moved_mean_px and moved_max_px of moved outlines, cost, seconds.
    """
    entries = sorted(images, key=lambda entry: entry["sha256"])
    labels: dict[str, list[tuple[Json, float, bool]]] = {}
    for image in entries:
        for entry, seconds in _with_seconds(image):
            key = entry["predicted_label"] or entry["label"]
            labels.setdefault(key, []).append((entry, seconds, image["shown"]))
    everything = [row for rows in labels.values() for row in rows]
    return {
        "totals": {**_figures(everything), **_image_figures(entries)},
        "labels": {label: _figures(labels[label]) for label in sorted(labels)},
        "images": entries,
        "left_out": list(left_out),
    }


def correction_report_markdown(report: Mapping[str, Any], title: str) -> str:
    """Write the report as a Markdown page with one table."""
    totals = report["totals"]
    lines = [f"# {title}", "", _summary(totals), ""]
    heads = ("label", "predicted", *SHOWN, "added", "unseen", "accepted", "moved, mean px", "max px", "work", "seconds")
    rows = [[label, *_cells(figures)] for label, figures in [*report["labels"].items(), ("**all**", totals)]]
    lines.append(tabulate(rows, heads, "github", disable_numparse=True))
    lines += ["", "Work is counted in actions of the hand: one for each vertex moved or drawn, and a few for choosing."]
    return "\n".join(lines + _reasons(report["left_out"])) + "\n"


def _object_entry(correction: Correction) -> Json:
    return {
        "correction": correction.kind,
        "label": correction.label,
        "predicted_label": correction.predicted_label,
        "score": correction.score,
        "iou": round(correction.iou, 4),
        "mean_px": round(correction.mean_px, 3),
        "max_px": round(correction.max_px, 3),
        "vertices": correction.vertices,
        "cost": round(correction.cost, 3),
    }


def _with_seconds(entry: Json) -> list[tuple[Json, float]]:
    objects = entry["objects"] or [_nothing(entry["shown"])]
    total = sum(1 + object["cost"] for object in objects)
    return [(object, (entry["seconds"] or 0.0) * (1 + object["cost"]) / total) for object in objects]


def _nothing(is_shown: bool) -> Json:
    return {
        "correction": "",
        "label": NO_OBJECT,
        "predicted_label": None,
        "vertices": 0,
        "cost": 0.0,
        "shown": is_shown,
    }


def _figures(rows: Sequence[tuple[Json, float, bool]]) -> Json:
    kinds = [entry["correction"] for entry, _, _ in rows]
    counts: Json = {kind: kinds.count(kind) for kind in SHOWN}
    predicted = sum(counts.values())
    moved_objects = [entry for entry, _, _ in rows if entry["vertices"] and entry["predicted_label"]]
    return {
        "predicted": predicted,
        **counts,
        "added": sum(entry["correction"] == "added" and is_shown for entry, _, is_shown in rows),
        "unseen": sum(entry["correction"] == "added" and not is_shown for entry, _, is_shown in rows),
        "acceptance": counts["kept"] / predicted if predicted else None,
        "moved_mean_px": statistics.fmean(entry["mean_px"] for entry in moved_objects) if moved_objects else None,
        "moved_max_px": max(entry["max_px"] for entry in moved_objects) if moved_objects else None,
        "cost": round(sum(entry["cost"] for entry, _, _ in rows), 3),
        "seconds": round(sum(seconds for _, seconds, _ in rows), 3),
    }


def _image_figures(images: Sequence[Json]) -> Json:
    times_s = [image["seconds"] for image in images if image["seconds"] is not None]
    shown_images = [image for image in images if image["shown"]]
    return {
        "images": len(images),
        "images_shown": len(shown_images),
        "images_untouched": sum(image["cost"] == 0 for image in shown_images),
        "images_timed": len(times_s),
        "median_seconds": statistics.median(times_s) if times_s else None,
        "median_cost": statistics.median(image["cost"] for image in images) if images else None,
    }


def _summary(totals: Mapping[str, Any]) -> str:
    acceptance = totals["acceptance"]
    parts = [f"{totals['images']} images, {totals['images_shown']} with a prediction"]
    if totals["images_shown"]:
        parts.append(f"{totals['images_untouched']} submitted as they were")
    if acceptance is not None:
        parts.append(f"{acceptance:.0%} of {totals['predicted']} predicted objects kept")
    if totals["median_seconds"] is not None:
        parts.append(f"{totals['median_seconds']:.0f} s an image (median of {totals['images_timed']})")
    return "; ".join(parts) + "."


def _cells(figures: Mapping[str, Any]) -> list[str]:
    counts = [str(figures[key]) for key in ("predicted", *SHOWN, "added", "unseen")]
    acceptance = figures["acceptance"]
    measures = [figures["moved_mean_px"], figures["moved_max_px"], figures["cost"], figures["seconds"]]
    cells = ["" if acceptance is None else f"{acceptance:.0%}"]
    cells += ["" if value is None else f"{value:.1f}" for value in measures]
    return counts + cells


def _reasons(left_out: Sequence[Mapping[str, Any]]) -> list[str]:
    if not left_out:
        return []
    places_of_reason: dict[str, list[str]] = {}
    for region in left_out:
        place = f"task {region['task']}" + (f" region {region['region']}" if region["region"] else "")
        places_of_reason.setdefault(region["reason"], []).append(place)
    lines = ["", f"## Left out: {len(left_out)}", ""]
    for reason, places in sorted(places_of_reason.items(), key=lambda item: -len(item[1])):
        remainder_text = f" and {len(places) - 5} more" if len(places) > 5 else ""
        lines.append(f"- {len(places)} x {reason}: {', '.join(places[:5])}{remainder_text}")
    return lines


class MostMoved:
    """Collects pictures of the objects whose outlines moved farthest (mean), without storing the images."""

    def __init__(self, limit: int = 12) -> None:
        self.limit = limit
        self._tiles: list[tuple[float, str, Image.Image]] = []

    def add(
        self, image_rgb: np.ndarray, before_hw: np.ndarray, after_hw: np.ndarray, correction: Correction, *, name: str
    ) -> None:
        """Add an object, if it is among the farthest so far; `name` identifies it, e.g. "task 7 r2"."""
        if not correction.vertices or (
            len(self._tiles) >= self.limit and (correction.mean_px, name) <= self._tiles[0][:2]
        ):
            return
        caption = f"{correction.label}  {correction.mean_px:.1f} px, max {correction.max_px:.0f}  {name}"
        margin_px = max(8, round(0.08 * max(np.ptp(np.nonzero(before_hw | after_hw), axis=1))))
        outlines = [(before_hw, BEFORE_RGB), (after_hw, AFTER_RGB)]
        tile = captioned(close_up(image_rgb, outlines, margin_px, _TILE_PX), caption)
        heapq.heappush(self._tiles, (correction.mean_px, name, tile))
        if len(self._tiles) > self.limit:
            heapq.heappop(self._tiles)

    def sheet(self) -> Image.Image | None:
        """All pictures, the farthest first, below a legend; None when no outline was moved."""
        tiles = [tile for _, _, tile in sorted(self._tiles, key=lambda item: (-item[0], item[1]))]
        if not tiles:
            return None
        sheet = captioned(in_grid(tiles, _COLUMNS, _GAP_PX), "orange: predicted, blue: submitted")
        for number, colour in enumerate((BEFORE_RGB, AFTER_RGB)):
            ImageDraw.Draw(sheet).rectangle((200 + 20 * number, 3, 214 + 20 * number, 10), fill=colour)
        return sheet
