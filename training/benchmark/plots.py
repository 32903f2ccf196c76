"""Plots of a table's report: AP against depth, speed against quality, bars by object size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

PAPER, MEASURED = "#9aa4b2", "#c2410c"


def draw_table_plots(report: dict[str, Any], folder: Path) -> list[Path]:
    """The plots that the report's columns allow, as PNG files."""
    columns = set(report["columns"])
    drawn = []
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        if report["table"] == 5:
            drawn.append(_save(_quality_by_row(report), folder / "ap-by-depth.png"))
        quality = "APB" if "APB" in columns else "AP"
        if {"FPS", quality} <= columns:
            drawn.append(_save(_against_speed(report, quality), folder / "quality-by-speed.png"))
        if {"APs", "APm", "APl"} <= columns:
            drawn.append(_save(_by_size(report), folder / "ap-by-size.png"))
        if not drawn:
            column = "APB" if "APB" in columns else report["columns"][0]
            drawn.append(_save(_bars(report, column), folder / "rows.png"))
    return drawn


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    return path


def _mean(row: dict[str, Any], column: str) -> float | None:
    found = row["measured"].get(column)
    return float(found["mean"]) if found else None


def _quality_by_row(report: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(5.5, 3.6))
    axes = figure.add_subplot()
    for source, colour, read in (
        ("paper", PAPER, lambda row: row["paper"].get("AP")),
        ("measured", MEASURED, lambda row: _mean(row, "AP")),
    ):
        points = [(depth, read(row)) for depth, row in enumerate(report["rows"]) if read(row) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=source)
    axes.set(xlabel="depth of the quadtree", ylabel="mask AP", xticks=range(len(report["rows"])))
    axes.legend(frameon=False)
    return figure


def _against_speed(report: dict[str, Any], column: str) -> Figure:
    """The paper's and the measured speeds are of different machines: two panels."""
    figure = Figure(figsize=(9, 3.8))
    panels = figure.subplots(1, 2)
    for axes, source, colour in zip(panels, ("paper", "measured"), (PAPER, MEASURED), strict=True):
        for row in report["rows"]:
            x = row["paper"].get("FPS") if source == "paper" else _mean(row, "FPS")
            y = row["paper"].get(column) if source == "paper" else _mean(row, column)
            if x is not None and y is not None:
                axes.plot(x, y, "o", color=colour)
                axes.annotate(row["name"], (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.margins(0.25)
        axes.set(xlabel="frames a second", ylabel=column.replace("APB", "boundary AP"), title=source)
    return figure


def _by_size(report: dict[str, Any]) -> Figure:
    rows = [row for row in report["rows"] if row["measured"]] or report["rows"]
    source = "measured" if any(row["measured"] for row in rows) else "paper"
    figure = Figure(figsize=(1.1 * len(rows) + 3, 3.6))
    axes = figure.add_subplot()
    for place, (column, shade) in enumerate((("APs", 0.35), ("APm", 0.65), ("APl", 1.0))):
        heights = [(_mean(row, column) if source == "measured" else row["paper"].get(column)) or 0.0 for row in rows]
        axes.bar(
            [n + 0.27 * (place - 1) for n in range(len(rows))], heights, 0.25, color=MEASURED, alpha=shade, label=column
        )
    axes.set(ylabel=f"AP by object size ({source})", xticks=range(len(rows)))
    axes.set_xticklabels([row["name"] for row in rows], rotation=20, ha="right", fontsize=7)
    axes.legend(frameon=False)
    return figure


def _bars(report: dict[str, Any], column: str) -> Figure:
    rows = report["rows"]
    figure = Figure(figsize=(6, 0.5 * len(rows) + 1.2))
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        paper, found = row["paper"].get(column), row["measured"].get(column)
        if paper is not None:
            axes.barh(place - 0.2, paper, 0.35, color=PAPER, label="paper" if place == 0 else None)
        if found:
            axes.barh(
                place + 0.2,
                found["mean"],
                0.35,
                xerr=found["std"] or None,
                color=MEASURED,
                label="measured" if place == 0 else None,
            )
    axes.set(yticks=range(len(rows)), xlabel=column)
    axes.set_yticklabels([row["name"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure
