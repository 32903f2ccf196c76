"""Line charts as SVG, drawn on the server: axes with numbers, a line a series, colours of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

Point = tuple[float, float]
WIDTH, HEIGHT = 340, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34
TICKS = 4


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: for the legend.
        points: x, y in rising x.
        refused: x of points that are drawn as crosses and end no line.
    """

    name: str
    points: Sequence[Point]
    refused: frozenset[float] = frozenset()


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, from_zero: bool = False) -> Markup:
    """An `<svg>`; "" without two points to draw.

    Args:
        x_label, y_label: what the axes say.
        from_zero: begin the vertical axis at 0, else at the lowest value.
    """
    points = [point for line in series for point in line.points if all(map(math.isfinite, point))]
    if not points or (len(points) < 2 and not from_zero):
        return Markup("")
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), whole=True)
    y_ticks = ticks(0.0 if from_zero else min(y for _, y in points), max(y for _, y in points))
    scale = _Scale(x_ticks, y_ticks)
    alt = f"{y_label} by {x_label}: " + "; ".join(
        f"{line.name} {_number(line.points[0][1])} to {_number(line.points[-1][1])}" for line in series if line.points
    )
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}">']
    parts += [_row(scale, tick) for tick in y_ticks]
    parts += [_column(scale, tick) for tick in x_ticks]
    parts += [
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text class="axis" transform="rotate(-90)" x="{-(TOP + HEIGHT - BOTTOM) / 2}" y="11" '
        f'text-anchor="middle">{escape(y_label)}</text>',
    ]
    for number, line in enumerate(series, 1):
        parts.append(_line(scale, line, number))
    if len(series) > 1:
        parts += [_legend(line.name, number) for number, line in enumerate(series, 1)]
    return Markup("".join([*parts, "</svg>"]))


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers from below `low` to above `high`, about `TICKS` of them; `whole`: integers."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= TICKS)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class _Scale:
    """From values to places on the drawing."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def x(self, value: float) -> float:
        share = (value - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def _number(value: float) -> str:
    return f"{value:.3g}"


def _row(scale: _Scale, tick: float) -> str:
    y = scale.y(tick)
    return (
        f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
        f'<text class="tick" x="{LEFT - 5}" y="{y + 3.5}" text-anchor="end">{_number(tick)}</text>'
    )


def _column(scale: _Scale, tick: float) -> str:
    y = HEIGHT - BOTTOM + 14
    return f'<text class="tick" x="{scale.x(tick)}" y="{y}" text-anchor="middle">{_number(tick)}</text>'


def _line(scale: _Scale, line: Series, number: int) -> str:
    places = [(scale.x(x), scale.y(y), x in line.refused) for x, y in line.points]
    good = [f"{x},{y}" for x, y, is_refused in places if not is_refused]
    marks = [
        f'<path class="cross s{number}" d="M{x - 4} {y - 4}l8 8m0 -8l-8 8"/>'
        if is_refused
        else f'<circle class="s{number}" cx="{x}" cy="{y}" r="2.5"/>'
        for x, y, is_refused in places
        if is_refused or len(places) <= 30
    ]
    return f'<polyline class="s{number}" points="{" ".join(good)}"/>' + "".join(marks)


def _legend(name: str, number: int) -> str:
    x = LEFT + 8 + (number - 1) * 110
    return (
        f'<path class="s{number}" d="M{x} {TOP + 4}h14"/><text class="tick" x="{x + 18}" y="{TOP + 7.5}">'
        f"{escape(name)}</text>"
    )
