"""Learning curves as PNG: a figure of merit over rounds, a line a series, refused rounds marked."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#555555")


@dataclass(frozen=True)
class Point:
    """One round.

    Attributes:
        x: number of the round.
        value: the figure, 0..100; None leaves the round out.
        refused: drawn as a cross, and no line leads on from it.
    """

    x: float
    value: float | None
    refused: bool = False


def draw_curve(series: Mapping[str, Sequence[Point]], *, title: str, figure_of_merit: str) -> bytes:
    """A PNG. Series are drawn in their order."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        good = [(p.x, p.value) for p in points if p.value is not None and not p.refused]
        bad = [(p.x, p.value) for p in points if p.value is not None and p.refused]
        axes.plot([x for x, _ in good], [y for _, y in good], "o-", color=colour, label=name)
        if bad:
            axes.plot(
                [x for x, _ in bad],
                [y for _, y in bad],
                "x",
                color=colour,
                markersize=10,
                markeredgewidth=2.5,
                label=f"{name}, refused by the gate",
            )
    axes.set_title(title)
    axes.set_xlabel("round")
    axes.set_ylabel(figure_of_merit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
