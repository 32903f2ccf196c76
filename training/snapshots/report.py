"""The corrections of a snapshot as figures: per label and in all, as JSON and as a table.

A predicted object counts under the label it was shown with, an added one under the label it was given. An annotation's
seconds are shared out to its objects by 1 + cost: everything is looked at, and work takes longer.

Pictures show the objects whose outlines people moved farthest.

Shapes: H, W image size.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from training.datasets.pictures import captioned, close_up, in_grid
from training.snapshots.corrections import Correction

Json = dict[str, Any]
#: What became of objects that were shown; the report's columns.
SHOWN = ("kept", "moved", "relabelled", "deleted")
#: The label of images without any object, which cost time too.
NO_OBJECT = "(no object)"
BEFORE_RGB, AFTER_RGB = (255, 110, 0), (0, 230, 255)
_TILE_PX, _GAP_PX, _COLUMNS = 240, 6, 4


def image_entry(
    corrections: Sequence[Correction],
    *,
    sha256: str,
    part: str,
    task_id: int,
    annotation_ids: Sequence[int],
    seconds: float | None,
    shown: bool,
    model_version: str = "",
    prediction_score: float | None = None,
) -> Json:
    """What the report keeps of one image.

    Args:
        sha256: of its content; part: "train" or "holdout".
        seconds: spent on it; None when unknown.
        shown: whether a prediction was shown and is known.
        model_version: of that prediction; prediction_score: its score.
    """
    return {
        "sha256": sha256,
        "part": part,
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
    """The report of a snapshot.

    Args:
        images: from `image_entry`.
        left_out: {task, annotation, region, reason} of what does not count.

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
    """The report as a page with one table."""
    totals = report["totals"]
    lines = [f"# {title}", "", _summary(totals), ""]
    heads = ("label", "predicted", *SHOWN, "added", "unseen", "accepted", "moved, mean px", "max px", "work", "seconds")
    lines += ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for label, figures in [*report["labels"].items(), ("**all**", totals)]:
        lines.append(f"| {label} | " + " | ".join(_cells(figures)) + " |")
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


def _nothing(shown: bool) -> Json:
    return {"correction": "", "label": NO_OBJECT, "predicted_label": None, "vertices": 0, "cost": 0.0, "shown": shown}


def _figures(rows: Sequence[tuple[Json, float, bool]]) -> Json:
    kinds = [entry["correction"] for entry, _, _ in rows]
    counts: Json = {kind: kinds.count(kind) for kind in SHOWN}
    predicted = sum(counts.values())
    moved = [entry for entry, _, _ in rows if entry["vertices"] and entry["predicted_label"]]
    return {
        "predicted": predicted,
        **counts,
        "added": sum(entry["correction"] == "added" and shown for entry, _, shown in rows),
        "unseen": sum(entry["correction"] == "added" and not shown for entry, _, shown in rows),
        "acceptance": counts["kept"] / predicted if predicted else None,
        "moved_mean_px": statistics.fmean(entry["mean_px"] for entry in moved) if moved else None,
        "moved_max_px": max(entry["max_px"] for entry in moved) if moved else None,
        "cost": round(sum(entry["cost"] for entry, _, _ in rows), 3),
        "seconds": round(sum(seconds for _, seconds, _ in rows), 3),
    }


def _image_figures(entries: Sequence[Json]) -> Json:
    timed = [entry["seconds"] for entry in entries if entry["seconds"] is not None]
    shown = [entry for entry in entries if entry["shown"]]
    return {
        "images": len(entries),
        "images_shown": len(shown),
        "images_untouched": sum(entry["cost"] == 0 for entry in shown),
        "images_timed": len(timed),
        "median_seconds": statistics.median(timed) if timed else None,
        "median_cost": statistics.median(entry["cost"] for entry in entries) if entries else None,
    }


def _summary(totals: Mapping[str, Any]) -> str:
    accepted = totals["acceptance"]
    parts = [f"{totals['images']} images, {totals['images_shown']} with a prediction"]
    if totals["images_shown"]:
        parts.append(f"{totals['images_untouched']} submitted as they were")
    if accepted is not None:
        parts.append(f"{accepted:.0%} of {totals['predicted']} predicted objects kept")
    if totals["median_seconds"] is not None:
        parts.append(f"{totals['median_seconds']:.0f} s an image (median of {totals['images_timed']})")
    return "; ".join(parts) + "."


def _cells(figures: Mapping[str, Any]) -> list[str]:
    counts = [str(figures[key]) for key in ("predicted", *SHOWN, "added", "unseen")]
    accepted = figures["acceptance"]
    measures = [figures["moved_mean_px"], figures["moved_max_px"], figures["cost"], figures["seconds"]]
    cells = ["" if accepted is None else f"{accepted:.0%}"]
    cells += ["" if value is None else f"{value:.1f}" for value in measures]
    return counts + cells


def _reasons(left_out: Sequence[Mapping[str, Any]]) -> list[str]:
    if not left_out:
        return []
    counted: dict[str, list[str]] = {}
    for region in left_out:
        place = f"task {region['task']}" + (f" region {region['region']}" if region["region"] else "")
        counted.setdefault(region["reason"], []).append(place)
    lines = ["", f"## Left out: {len(left_out)}", ""]
    for reason, places in sorted(counted.items(), key=lambda item: -len(item[1])):
        more = f" and {len(places) - 5} more" if len(places) > 5 else ""
        lines.append(f"- {len(places)} x {reason}: {', '.join(places[:5])}{more}")
    return lines


class MostMoved:
    """Keeps pictures of the objects whose outlines moved farthest (mean), without keeping the images."""

    def __init__(self, limit: int = 12) -> None:
        self.limit = limit
        self._tiles: list[tuple[float, str, Image.Image]] = []

    def add(
        self, image_rgb: np.ndarray, before_hw: np.ndarray, after_hw: np.ndarray, correction: Correction, *, name: str
    ) -> None:
        """Take an object, if it is among the farthest so far; `name` tells it apart, e.g. "task 7 r2"."""
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
        """All of them, the farthest first, below a legend; None when no outline was moved."""
        tiles = [tile for _, _, tile in sorted(self._tiles, key=lambda item: (-item[0], item[1]))]
        if not tiles:
            return None
        sheet = captioned(in_grid(tiles, _COLUMNS, _GAP_PX), "orange: predicted, blue: submitted")
        for number, colour in enumerate((BEFORE_RGB, AFTER_RGB)):
            ImageDraw.Draw(sheet).rectangle((200 + 20 * number, 3, 214 + 20 * number, 10), fill=colour)
        return sheet
