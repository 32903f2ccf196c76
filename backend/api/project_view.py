"""What the status page shows of a project: words and charts (SVG) made of the facts that /learning gives."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup

from backend.learning import round as runs
from backend.predictions.projects import Project
from backend.queue.train_queue import QUEUED
from backend.settings import Settings
from integration.label_studio.notice import PREFIX

Facts = dict[str, Any]
LEARNS = ("few-shot", "finetune")
# Stages of a round as people see them; each begins with the first of its own names.
STEPS = {
    "collect": ("looking", "snapshot"),
    "learn": (*LEARNS, "calibrate"),
    "judge": ("publish", "gate"),
    "serve": ("promote", "label studio"),
}
DOING = {
    "looking": "looks for new annotations",
    "snapshot": "collects annotations and images",
    "few-shot": "learns",
    "finetune": "learns",
    "calibrate": "measures the order of work",
    "publish": "stores the version",
    "gate": "judges it on images that it did not learn from",
    "promote": "lets it serve",
    "label studio": "tells Label Studio",
}
STAGES = tuple(DOING)
TONES = {runs.PROMOTED: "good", runs.UNCHANGED: "quiet"}
JUDGED = (runs.PROMOTED, runs.REJECTED)


def project_view(
    settings: Settings, project: Project | None, facts: Facts, *, waiting: int, trainers: Sequence[str], busy: str
) -> Facts:
    """For the template.

    Args:
        project: as /setup made it known; None where only the registry knows it.
        facts: of `learning_facts`; {} where learning is off.
        trainers: workers that take trainings; busy: name of the project that one of them trains.
    """
    looked = facts.get("looked") or {}
    identity = project.id if project else str(facts["id"])
    rounds = [run for run in facts.get("rounds", ()) if run["state"] != runs.RUNNING]
    return {
        **facts,
        "id": identity,
        "name": looked.get("title") or f"Project {identity}",
        "link": project_link(project) if project else "",
        "words": project.notice.removeprefix(PREFIX).replace(f" {settings.status_url}", "") if project else "",
        "warnings": project.warnings if project else (),
        "model_version": project.model_version if project else "",
        "seen_at": project.seen_at if project else 0,
        "can_learn": bool(facts),
        "looked": looked,
        "new_annotations": looked.get("new", 0),
        "waits_for": _waits_for(settings, looked),
        "waiting": waiting,
        "repredicting": facts.get("repredicting", {}),
        "current": _current(facts, trainers, busy) if facts.get("current") else {},
        "rounds": [_round(run) for run in rounds],
        "ap_chart": _ap_chart(rounds),
    }


def project_link(project: Project) -> str:
    """Address of the project in Label Studio; "" where that is not a web address, or anybody could have sent it."""
    is_web = project.hostname.startswith(("http://", "https://"))
    return f"{project.hostname}/projects/{project.id}/data" if is_web and project.is_believed else ""


def duration(seconds: float) -> str:
    """Seconds or minutes, for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _waits_for(settings: Settings, looked: Mapping[str, Any]) -> str:
    """What has to happen before the next round."""
    new = looked.get("new", 0)
    since = f"{new} annotation(s) since the newest training." if looked else "Not looked at yet."
    ways = ["press Train now, or Start Training in Label Studio"] if new else ["it waits for annotations"]
    if settings.train_after:
        ways.append(f"it trains by itself at {settings.train_after} annotations")
    if settings.train_every_h:
        ways.append(f"it trains every {settings.train_every_h:g} h when there are new ones")
    text = "; ".join(ways)
    return f"{since} {text[0].upper()}{text[1:]}."


def _current(facts: Facts, trainers: Sequence[str], busy: str) -> Facts:
    now = dict(facts["current"])
    stage = str(now.get("stage") or "")
    now["number"] = facts["count"] + (0 if any(run["id"] == now["run"] for run in facts["rounds"]) else 1)
    record: Mapping[str, Any] = next((run for run in facts["rounds"] if run["id"] == now["run"]), {})
    now["steps"] = _steps(stage, record.get("stage_s", {}))
    now["loss_chart"] = _loss_chart(now.get("curve") or ())
    if now.get("state") == QUEUED or not stage:
        if not trainers:
            now["doing"] = "waits for a worker that takes trainings; none is alive"
        else:
            now["doing"] = f"waits until the training of {busy} is over" if busy else "waits for the training worker"
        return now
    now["doing"] = DOING.get(stage, stage)
    if now["of"]:
        now["doing"] += f", step {now['iteration']} of {now['of']}"
    now["doing"] += f"; {_time_left(now, facts['rounds'])}"
    return now


def _steps(stage: str, spent_s: Mapping[str, float]) -> list[tuple[str, str]]:
    """Each step with the time it took, where it is over, and the class of its look: done, now or nothing."""
    place = next((number for number, names in enumerate(STEPS.values()) if stage in names), -1)
    steps = []
    for number, (name, stages) in enumerate(STEPS.items()):
        took_s = sum(spent_s.get(each, 0.0) for each in stages)
        text = f"{name} ({duration(took_s)})" if number < place and took_s >= 1 else name
        steps.append((text, "done" if number < place else "now" if number == place else ""))
    return steps


def _time_left(now: Facts, rounds: Sequence[Mapping[str, Any]]) -> str:
    """From the training's own estimate and what the stages took in the newest round that was judged."""
    typical: Mapping[str, float] = next(
        (run["stage_s"] for run in rounds if run["state"] in JUDGED and run.get("stage_s")), {}
    )
    stage = now["stage"]
    spent_s = time.time() - float(now.get("stage_since") or time.time())
    own_s = now.get("eta_s")
    if own_s is None and stage in typical:
        own_s = max(1.0, typical[stage] - spent_s)
    if own_s is None:
        return f"begun {duration(spent_s)} ago, the time left is known once it learns"
    later = STAGES[STAGES.index(stage) + 1 :] if stage in STAGES else ()
    if stage in LEARNS:
        later = tuple(name for name in later if name not in LEARNS)
    total_s = own_s + sum(typical.get(name, 0.0) for name in later)
    rest = "" if typical or stage not in LEARNS else ", then it is judged"
    return f"about {duration(total_s)} left{rest}"


def _round(run: Mapping[str, Any]) -> Facts:
    took_s = run["ended_at"] - (run["started_at"] or run["ended_at"])
    texts = [text for text in (*run["reasons"], run["error"], run["hint"], run["order"], run["note"]) if text]
    return {
        **run,
        "tone": TONES.get(run["state"], "bad"),
        "minutes": duration(took_s) if took_s >= 1 else "",
        "size": _size(run["snapshot_counts"], run.get("judged_by", "")),
        "scores": _scores(run),
        # What was decided, and what failed with its fix, stands there at once; the rest on demand.
        "headlines": texts[:1] if run["state"] in JUDGED else texts,
        "texts": texts[1:] if run["state"] in JUDGED else [],
        "loss_chart": _loss_chart(run.get("losses") or ()),
        "papers": run["state"] in JUDGED,
    }


def _size(counts: Mapping[str, Any], judged_by: str = "") -> str:
    if not counts.get("images"):
        return ""
    objects = f" with {counts['objects']} objects" if "objects" in counts else ""
    held = f", {counts['holdout_images']} of them held out to judge by" if "holdout_images" in counts else ""
    if judged_by:
        held = f", judged by {judged_by}"
    return f"{counts['images']} images{objects}{held}"


def _scores(run: Mapping[str, Any]) -> str:
    parts = []
    for name, title in (("boundary_ap", "boundary AP"), ("mask_ap", "mask AP")):
        after, before = run["metrics"].get(name), run.get("before", {}).get(name)
        if isinstance(after, int | float):
            first = f"{100 * before:.1f} → " if isinstance(before, int | float) else ""
            parts.append(f"{title} {first}{100 * after:.1f}")
    return ", ".join(parts)


def _ap_chart(rounds: Sequence[Mapping[str, Any]]) -> Markup:
    judged = [run for run in reversed(rounds) if run["state"] in JUDGED]
    if len(judged) < 2:
        return Markup("")  # the round's own line says it
    refused = frozenset(float(run["number"]) for run in judged if run["state"] == runs.REJECTED)
    series = [
        Series(
            title,
            [(run["number"], 100 * run["metrics"][name]) for run in judged if _is_number(run["metrics"].get(name))],
            refused,
        )
        for name, title in (("boundary_ap", "boundary AP"), ("mask_ap", "mask AP"))
    ]
    return line_chart(series, x_label="round", y_label="AP", from_zero=True)


def _loss_chart(curve: Sequence[Sequence[float]]) -> Markup:
    return line_chart([Series("loss", [(x, y) for x, y in curve])], x_label="step", y_label="loss")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


Point = tuple[float, float]
WIDTH, HEIGHT = 340, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34
TICKS = 4


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        refused: x of points that are drawn as crosses and end no line.
    """

    name: str
    points: Sequence[Point]
    refused: frozenset[float] = frozenset()


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, from_zero: bool = False) -> Markup:
    """An `<svg>`; "" without two points to draw.

    Args:
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
