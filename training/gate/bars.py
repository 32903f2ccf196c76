"""A verdict as bars: what changed, class by class, with intervals; for a first version what it reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS = {"mask": "#3b6fb6", "boundary": "#e08a2e"}
_HEIGHT = 0.38


def draw_bars(figures: dict[str, Any], path: Path) -> None:
    """Draw the figures of a verdict into a PNG."""
    changes = figures["changes"].get("incumbent")
    names = _names(figures)
    figure = Figure(figsize=(8, 1.6 + 0.5 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (kind, colour) in enumerate(_COLOURS.items()):
        heights = [index + (place - 0.5) * _HEIGHT for index in range(len(names))]
        if changes:
            _draw_changes(axes, changes[kind], names, heights, colour, f"{kind} AP")
        else:
            reached = figures["models"]["candidate"][kind]
            widths = [100 * (reached.get(name) or 0) for name in names]
            axes.barh(heights, widths, _HEIGHT, color=colour, label=f"{kind} AP")
    _dress(axes, names, figures, bool(changes))
    figure.savefig(path, dpi=120)


def _names(figures: dict[str, Any]) -> list[str]:
    """AP first, then the classes that have a figure."""
    reached = figures["models"]["candidate"]["mask"]
    return [name for name in reached if name == "AP" or (name.startswith("AP/") and reached[name] is not None)]


def _draw_changes(
    axes: Axes, changes: dict[str, Any], names: list[str], heights: list[float], colour: str, label: str
) -> None:
    there = [(height, changes[name]) for height, name in zip(heights, names, strict=True) if name in changes]
    places = [height for height, _ in there]
    axes.barh(places, [100 * one["change"] for _, one in there], _HEIGHT, color=colour, label=label)
    for height, one in there:
        axes.plot([100 * one["low"], 100 * one["high"]], [height, height], color="black", linewidth=1.2)


def _dress(axes: Axes, names: list[str], figures: dict[str, Any], compared: bool) -> None:
    models, images = figures["models"], figures["holdout"]["images"]
    axes.set_yticks(range(len(names)), [name.removeprefix("AP/").replace("AP", "all classes") for name in names])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    candidate = models["candidate"]["version"]
    if compared:
        axes.set_title(f"{candidate} against {models['incumbent']['version']}, {images} held-out images")
        confidence = 100 * figures["rules"]["confidence"]
        axes.set_xlabel(f"change of AP in points; lines: {confidence:g} % confidence each way")
    else:
        axes.set_title(f"{candidate}, {images} held-out images")
        axes.set_xlabel("AP in points")
    axes.legend(loc="best", frameon=False)
