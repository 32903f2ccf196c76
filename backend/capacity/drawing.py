"""The picture: waiting time against workers, a panel for each load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from backend.capacity.sizing import Sized

LINES = {"p50": ("#9aa4b2", "wait_p50_s"), "p95": ("#1d4ed8", "wait_p95_s"), "p99": ("#c2410c", "wait_p99_s")}
# Waits of nothing must be somewhere on a logarithmic axis.
LEAST_S = 0.001


def draw(sized: Sequence[Sized], target_s: float, path: Path) -> None:
    """A PNG."""
    figure = Figure(figsize=(4 * len(sized) + 0.4, 3.6), layout="constrained")
    panels = figure.subplots(1, len(sized), squeeze=False, sharey=True)[0]
    for axes, one in zip(panels, sized, strict=True):
        _panel(axes, one, target_s)
    panels[0].set_ylabel("waiting time at the peak, s")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130, facecolor="white")


def _panel(axes: Axes, one: Sized, target_s: float) -> None:
    workers = list(one.curve)
    for name, (colour, field) in LINES.items():
        waits = [max(LEAST_S, getattr(waits, field)) for waits in one.curve.values()]
        axes.plot(workers, waits, "o-", color=colour, linewidth=1.5, markersize=3.5, label=name)
    axes.axhline(target_s, color="black", linewidth=0.8, linestyle="--")
    axes.axvline(one.workers, color="#15803d", linewidth=6, alpha=0.2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    needed = f"{one.workers:,} worker{'s' * (one.workers > 1)}"
    axes.set_title(f"{one.load.images_a_day:,.0f} images a day: {needed}", fontsize=10)
    axes.set_xlabel("workers")
    axes.spines[["top", "right"]].set_visible(False)
