"""Charts of reports: verdicts, and corrections by label.

The one home of drawing with matplotlib. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

if TYPE_CHECKING:
    from training.gate.verdict import ChangeFigures, VerdictFigures

KIND_COLOURS: dict[Literal["mask", "boundary"], str] = {"mask": "#3b6fb6", "boundary": "#e08a2e"}
BAR_HEIGHT = 0.38
#: Distinguished by people who confuse red and green.
CORRECTION_COLOURS = {
    "kept": "#009e73",
    "moved": "#e69f00",
    "relabelled": "#cc79a7",
    "deleted": "#d55e00",
    "added": "#0072b2",
}
MOST_LABELS = 25


def new_chart(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of this size in inches, with panels side by side that share their y axis."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure on white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white")
    return path


def as_image(figure: Figure) -> Image.Image:
    """Draw a figure into memory."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def draw_gate_bars(figures: VerdictFigures, path: Path) -> None:
    """Draw the figures of a verdict into a PNG."""
    changes = figures["changes"].get("incumbent")
    names = _names_with_figures(figures)
    figure, (axes,) = new_chart(8, 1.6 + 0.5 * len(names))
    for place, (kind, colour) in enumerate(KIND_COLOURS.items()):
        heights = [index + (place - 0.5) * BAR_HEIGHT for index in range(len(names))]
        if changes:
            _draw_changes(axes, changes[kind], names, heights, colour, f"{kind} AP")
        else:
            reached = figures["models"]["candidate"][kind]
            widths = [100 * (reached.get(name) or 0) for name in names]
            axes.barh(heights, widths, BAR_HEIGHT, color=colour, label=f"{kind} AP")
    _dress(axes, names, figures, bool(changes))
    save_png(figure, path)


def _names_with_figures(figures: VerdictFigures) -> list[str]:
    """AP first, then the classes that have a figure."""
    reached = figures["models"]["candidate"]["mask"]
    return [name for name in reached if name == "AP" or (name.startswith("AP/") and reached[name] is not None)]


def _draw_changes(
    axes: Axes, changes: dict[str, ChangeFigures], names: list[str], heights: list[float], colour: str, label: str
) -> None:
    there = [(height, changes[name]) for height, name in zip(heights, names, strict=True) if name in changes]
    places = [height for height, _ in there]
    axes.barh(places, [100 * change["change"] for _, change in there], BAR_HEIGHT, color=colour, label=label)
    for height, change in there:
        axes.plot([100 * change["low"], 100 * change["high"]], [height, height], color="black", linewidth=1.2)


def _dress(axes: Axes, names: list[str], figures: VerdictFigures, compared: bool) -> None:
    models, images = figures["models"], figures["holdout"]["images"]
    axes.set_yticks(range(len(names)), [name.removeprefix("AP/").replace("AP", "all classes") for name in names])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    candidate = models["candidate"]["version"]
    if compared:
        axes.set_title(f"{candidate} against {models['incumbent']['version']}, {images} images")
        confidence = 100 * figures["rules"]["confidence"]
        axes.set_xlabel(f"change of AP in points; lines: {confidence:g} % confidence each way")
    else:
        axes.set_title(f"{candidate}, {images} images")
        axes.set_xlabel("AP in points")
    axes.legend(loc="best", frameon=False)


def draw_correction_bars(report: Mapping[str, Any]) -> Image.Image:
    """Draw corrections of each label, the most frequent on top, and how far outlines were moved."""
    rows = sorted(report["labels"].items(), key=lambda item: -_objects(item[1]))[:MOST_LABELS]
    rows = [row for row in rows if _objects(row[1])][::-1]
    figure = Figure(figsize=(9, 1.6 + 0.32 * max(len(rows), 1)), dpi=110, layout="constrained")
    objects, moved = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    names = [label for label, _ in rows]
    left = np.zeros(len(rows))
    for kind, colour in CORRECTION_COLOURS.items():
        widths = np.array([_count(figures, kind) for _, figures in rows], float)
        objects.barh(names, widths, left=left, color=colour, label=kind)
        left += widths
    objects.set_xlabel("objects")
    figure.legend(loc="outside upper left", ncols=len(CORRECTION_COLOURS), frameon=False)
    moved.barh(names, [figures["moved_mean_px"] or 0.0 for _, figures in rows], color=CORRECTION_COLOURS["moved"])
    moved.set_xlabel("moved outlines, mean px")
    for axes in (objects, moved):
        axes.spines[["top", "right"]].set_visible(False)
    hidden = len(report["labels"]) - len(rows)
    if hidden > 0 and len(rows) == MOST_LABELS:
        figure.text(0.99, 0.005, f"{hidden} more labels in report.md", ha="right", va="bottom", fontsize=7)
    return as_image(figure)


def _objects(figures: Mapping[str, Any]) -> int:
    return int(sum(_count(figures, kind) for kind in CORRECTION_COLOURS))


def _count(figures: Mapping[str, Any], kind: str) -> int:
    return int(figures[kind] + (figures["unseen"] if kind == "added" else 0))
