"""The picture: every claim's difference with its interval, the paper's beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLOURS = {"as in the paper": "#15803d", "against the paper": "#b91c1c", "not significant": "#9aa4b2"}
OTHER = "#1d4ed8"
PANELS = {"mask": "mask AP", "boundary": "boundary AP"}


def draw(report: dict[str, Any], path: Path) -> None:
    """A PNG with a panel for mask AP and one for boundary AP."""
    claims = report["claims"]
    figure = Figure(figsize=(11, 0.32 * len(claims) + 1.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (kind, title) in zip(panels, PANELS.items(), strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for place, claim in enumerate(claims):
            found = claim[kind]
            colour = COLOURS.get(found["verdict"], OTHER)
            axes.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=2)
            axes.plot(found["mean"], place, "o", color=colour, markersize=5)
            if found["paper"] is not None:
                axes.plot(found["paper"], place, "|", color="black", markersize=9)
        axes.set(xlabel=f"{title}, second minus first, points")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(claims)))
    panels[0].set_yticklabels([f"{c['table']}: {c['first']} → {c['second']}" for c in claims], fontsize=8)
    panels[0].invert_yaxis()
    shown = {claim[kind]["verdict"] for claim in claims for kind in PANELS}
    marks = [axes.plot([], [], "o", color=COLOURS.get(one, OTHER), label=one)[0] for one in sorted(shown)]
    marks += panels[0].plot([], [], "|", color="black", markersize=9, label="the paper, on COCO")
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130, facecolor="white")
