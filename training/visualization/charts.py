"""Charts of reports: AP beside depth, speed, size and time; differences with their intervals.

The one home of drawing with matplotlib beside `plots`, which draws what a network saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PAPER, MEASURED = "#9aa4b2", "#c2410c"
VERDICT_COLOURS = {"as in the paper": "#15803d", "against the paper": "#b91c1c", "not significant": "#9aa4b2"}
OTHER_VERDICT = "#1d4ed8"


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


def draw_table_charts(report: dict[str, Any], folder: Path) -> list[Path]:
    """The charts that a table's columns allow, as PNG files."""
    columns = set(report["columns"])
    quality = "APB" if "APB" in columns else "AP"
    charts: dict[str, Figure] = {}
    if report["table"] == 5:
        charts["ap-by-depth"] = _quality_by_depth(report)
    if {"FPS", quality} <= columns:
        charts["quality-by-speed"] = _quality_by_speed(report, quality)
    if {"APs", "APm", "APl"} <= columns:
        charts["ap-by-size"] = _by_size(report)
    if not charts:
        charts["rows"] = _bars(report, quality if quality in columns else report["columns"][0])
    return [save_png(figure, folder / f"{name}.png") for name, figure in charts.items()]


def _value(row: dict[str, Any], column: str, source: str) -> float | None:
    """The paper's figure or the measured mean; None where there is none."""
    if source == "paper":
        figure = row["paper"].get(column)
        return None if figure is None else float(figure)
    summary = row["measured"].get(column)
    return float(summary["mean"]) if summary else None


def _quality_by_depth(report: dict[str, Any]) -> Figure:
    figure, (axes,) = new_chart(5.5, 3.6)
    for source, colour in (("paper", PAPER), ("measured", MEASURED)):
        values = [(depth, _value(row, "AP", source)) for depth, row in enumerate(report["rows"])]
        points = [(depth, value) for depth, value in values if value is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=source)
    axes.set(xlabel="depth of the quadtree", ylabel="mask AP", xticks=range(len(report["rows"])))
    axes.legend(frameon=False)
    return figure


def _quality_by_speed(report: dict[str, Any], column: str) -> Figure:
    """The paper's and the measured speeds are of different machines: two panels."""
    figure, panels = new_chart(9, 3.8, columns=2)
    for axes, source, colour in zip(panels, ("paper", "measured"), (PAPER, MEASURED), strict=True):
        for row in report["rows"]:
            x, y = _value(row, "FPS", source), _value(row, column, source)
            if x is not None and y is not None:
                axes.plot(x, y, "o", color=colour)
                axes.annotate(row["name"], (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.margins(0.25)
        axes.set(xlabel="frames a second", ylabel=column.replace("APB", "boundary AP"), title=source)
    return figure


def _by_size(report: dict[str, Any]) -> Figure:
    rows = [row for row in report["rows"] if row["measured"]] or report["rows"]
    source = "measured" if any(row["measured"] for row in rows) else "paper"
    figure, (axes,) = new_chart(1.1 * len(rows) + 3, 3.6)
    for place, (column, shade) in enumerate((("APs", 0.35), ("APm", 0.65), ("APl", 1.0))):
        heights = [_value(row, column, source) or 0.0 for row in rows]
        lefts = [number + 0.27 * (place - 1) for number in range(len(rows))]
        axes.bar(lefts, heights, 0.25, color=MEASURED, alpha=shade, label=column)
    axes.set(ylabel=f"AP by object size ({source})", xticks=range(len(rows)))
    axes.set_xticklabels([row["name"] for row in rows], rotation=20, ha="right", fontsize=7)
    axes.legend(frameon=False)
    return figure


def _bars(report: dict[str, Any], column: str) -> Figure:
    rows = report["rows"]
    figure, (axes,) = new_chart(6, 0.5 * len(rows) + 1.2)
    for source, colour, shift in (("paper", PAPER, -0.2), ("measured", MEASURED, 0.2)):
        values = [(place, row, _value(row, column, source)) for place, row in enumerate(rows)]
        bars = [(place + shift, row, value) for place, row, value in values if value is not None]
        if bars:
            spread = [row["measured"][column]["std"] if source == "measured" else 0.0 for _, row, _ in bars]
            places, lengths = [bar[0] for bar in bars], [bar[2] for bar in bars]
            axes.barh(places, lengths, 0.35, xerr=spread if any(spread) else None, color=colour, label=source)
    axes.set(yticks=range(len(rows)), xlabel=column)
    axes.set_yticklabels([row["name"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure


def draw_differences(claims: Sequence[dict[str, Any]], kinds: Sequence[str], path: Path) -> Path:
    """Every claim's difference with its interval, the paper's beside it; a panel a kind of AP.

    Args:
        claims: with table, first, second, and by kind mean, low, high, paper and verdict.
    """
    figure, panels = new_chart(11, 0.32 * len(claims) + 1.6, columns=len(kinds))
    for axes, kind in zip(panels, kinds, strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for place, claim in enumerate(claims):
            difference = claim[kind]
            colour = VERDICT_COLOURS.get(difference["verdict"], OTHER_VERDICT)
            axes.plot([difference["low"], difference["high"]], [place, place], color=colour, linewidth=2)
            axes.plot(difference["mean"], place, "o", color=colour, markersize=5)
            if difference["paper"] is not None:
                axes.plot(difference["paper"], place, "|", color="black", markersize=9)
        axes.set(xlabel=f"{kind} AP, second minus first, points", yticks=range(len(claims)), yticklabels=[])
        axes.invert_yaxis()
    panels[0].set_yticklabels([f"{c['table']}: {c['first']} → {c['second']}" for c in claims], fontsize=8)
    verdicts = sorted({claim[kind]["verdict"] for claim in claims for kind in kinds})
    marks = [
        panels[0].plot([], [], "o", color=VERDICT_COLOURS.get(verdict, OTHER_VERDICT), label=verdict)[0]
        for verdict in verdicts
    ]
    marks += panels[0].plot([], [], "|", color="black", markersize=9, label="the paper, on COCO")
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False, fontsize=8)
    return save_png(figure, path)


def draw_budget_curve(points: Sequence[Any], knee: Any, name_of: Callable[[int], str], path: Path) -> Path:
    """Boundary AP against seconds an image for several node budgets, the knee marked."""
    figure, (axes,) = new_chart(6, 4)
    axes.plot([point.seconds for point in points], [100 * point.boundary_ap for point in points], "o-")
    for point in points:
        place = (point.seconds, 100 * point.boundary_ap)
        axes.annotate(name_of(point.budget), place, (4, -10), textcoords="offset points", fontsize=8)
    axes.plot([knee.seconds], [100 * knee.boundary_ap], "o", ms=13, mfc="none", color="tab:red", label="knee")
    axes.set(xlabel="seconds an image", ylabel="boundary AP", title="Boundary AP under a budget of nodes an image")
    axes.legend(loc="lower right")
    return save_png(figure, path)
