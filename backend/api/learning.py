"""Trainings of each project: as JSON, as text and charts (SVG) of the status page; reports, and buttons."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from flask import Blueprint, Response, jsonify, redirect, request
from markupsafe import Markup

from backend.api.access import check_form
from backend.api.services import Services, services
from backend.errors import BadRequestError, ServiceError
from backend.learning import round as runs
from backend.predictions.projects import Project
from backend.queue.delivery import repredicting
from backend.queue.train_queue import BUTTON, QUEUED, TrainQueue, living_trainers, read_trigger_state
from backend.settings import Settings
from backend.versions.resolve import project_name, registry_of, required_registry
from integration.label_studio.notice import PREFIX
from training.registry import Registry, RegistryError
from training.registry.storage import checked_name, is_artifact

Facts = dict[str, Any]
learning = Blueprint("learning", __name__, url_prefix="/learning")
ROUNDS_SHOWN = 12


def learning_facts(service: Services) -> Facts:
    """Past rounds, the current training and the versions of each project; {} where learning is off."""
    registry = registry_of(service.settings)
    if registry is None:
        return {}
    store = runs.RunStore(service.settings.registry)
    connected_names = {project_name(project.key) for project in service.predictions.projects.newest()}
    names = sorted({*connected_names, *store.projects()} - {""}, key=lambda name: (len(name), name))
    return {
        "trainers": living_trainers(service.connection),
        "registry": service.settings.registry,
        "projects": [_project(service, registry, store, name) for name in names],
    }


def _project(service: Services, registry: Registry, store: runs.RunStore, name: str) -> Facts:
    connection, queue = service.connection, TrainQueue(service.connection)
    current = queue.current(name)
    if current:
        current["is_cancelled"] = queue.is_cancelled(name, str(current.get("run", "")))
    versions = registry.versions(name)
    active = registry.active(name)
    total = store.count(name)
    return {
        "id": name,
        "active": active,
        "can_roll_back": bool(registry.pointer(name).history),
        "current": current,
        "count": total,
        "looked": read_trigger_state(connection, name),
        "repredicting": repredicting(connection, name),
        "rounds": _rounds(store, name, total),
        "versions": [{**asdict(info), "is_active": info.name == active} for info in reversed(versions[-ROUNDS_SHOWN:])],
    }


def _rounds(store: runs.RunStore, project: str, total: int) -> list[dict[str, Any]]:
    """The newest rounds, numbered from the project's first, without the gate's full figures."""
    return [
        {
            "number": total - place,
            "before": _before(run.figures),
            "judged_by": run.figures.get("holdout", {}).get("description", ""),
            **{name: value for name, value in vars(run).items() if name != "figures"},
        }
        for place, run in enumerate(store.newest(project, ROUNDS_SHOWN))
    ]


def _before(figures: dict[str, Any]) -> Facts:
    """AP of the version that served, on the same hold-out; {} where there was none."""
    incumbent = figures.get("models", {}).get("incumbent", {})
    return {f"{kind}_ap": incumbent[kind].get("AP") for kind in ("mask", "boundary") if kind in incumbent}


@learning.get("")
def learning_overview() -> Response:
    """Trainings of all projects, as the status page shows them, as JSON."""
    return jsonify(learning_facts(services()))


@learning.get("/<int:project>/versions/<version>/<path:artifact>")
def round_artifact(project: int, version: str, artifact: str) -> Response:
    """Report, model card and pictures of a version."""
    if not is_artifact(artifact):
        raise BadRequestError(
            f"{artifact[:80]!r} is no paper of a version.", "MODEL_CARD.md, report.* and pictures/* are."
        )
    try:
        checked_name("version", version)
    except RegistryError as error:
        raise BadRequestError(str(error)) from error
    content = required_registry(services().settings).paper(str(project), version, artifact)
    if content is None:
        raise ServiceError(f"Version {version} has no {artifact}.", status=404)
    kinds = {"jpg": "image/jpeg", "png": "image/png", "json": "application/json"}
    kind = kinds.get(artifact.rpartition(".")[2], "text/plain; charset=utf-8")
    # Neither a version nor its report ever changes.
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=86400"}
    return Response(content, content_type=kind, headers=headers)


@learning.post("/<int:project>/<action>")
def act(project: int, action: str) -> Any:
    """Carry out a button of the status page: start, cancel, promote (field `version`) or rollback."""
    service = services()
    check_form(service.connection, service.settings)
    required_registry(services().settings)
    try:
        message = _do(service, str(project), action, request.form.get("version", ""))
    except RegistryError as error:
        raise BadRequestError(str(error), status=409) from error
    # The watcher of the project then updates the backend's title in Label Studio.
    service.predictions.projects.touch(project)
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        return redirect("../../status", code=303)
    return jsonify(status=message)


def _do(service: Services, project: str, action: str, version: str) -> str:
    registry, queue = required_registry(service.settings), TrainQueue(service.connection)
    if action == "start":
        return queue.request(project, BUTTON).message
    if action == "cancel":
        run = queue.cancel(project)
        return f"Training {run} is being cancelled." if run else "Nothing waits or runs."
    if action == "promote":
        registry.promote(project, version)
        return f"{version} serves now."
    if action == "rollback":
        return f"{registry.roll_back(project)} serves now."
    raise BadRequestError(
        f"There is no button {action[:40]!r}.", "start, cancel, promote and rollback are.", status=404
    )


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
    """Values of one project for the status page's template.

    Args:
        project: as /setup saved it; None where only the registry has it.
        facts: of `learning_facts`; {} where learning is off.
        trainers: workers that take trainings; busy: name of the project that one of them trains.
    """
    trigger_state = facts.get("looked") or {}
    identity = project.id if project else str(facts["id"])
    rounds = [run for run in facts.get("rounds", ()) if run["state"] != runs.RUNNING]
    return {
        **facts,
        "id": identity,
        "name": trigger_state.get("title") or f"Project {identity}",
        "link": project_link(project) if project else "",
        "words": project.notice.removeprefix(PREFIX).replace(f" {settings.status_url}", "") if project else "",
        "warnings": project.warnings if project else (),
        "model_version": project.model_version if project else "",
        "seen_at": project.seen_at if project else 0,
        "can_learn": bool(facts),
        "looked": trigger_state,
        "new_annotations": trigger_state.get("new", 0),
        "waits_for": _waits_for(settings, trigger_state),
        "waiting": waiting,
        "repredicting": facts.get("repredicting", {}),
        "current": _current(facts, trainers, busy) if facts.get("current") else {},
        "rounds": [_round(run) for run in rounds],
        "ap_chart": _ap_chart(rounds),
    }


def project_link(project: Project) -> str:
    """Address of the project in Label Studio; "" where that is no web address or is not trusted."""
    is_web = project.hostname.startswith(("http://", "https://"))
    return f"{project.hostname}/projects/{project.id}/data" if is_web and project.is_believed else ""


def duration(seconds: float) -> str:
    """Format a duration for people, in s, min or h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _waits_for(settings: Settings, trigger_state: Mapping[str, Any]) -> str:
    """What has to happen before the next round."""
    new_annotations = trigger_state.get("new", 0)
    since = f"{new_annotations} annotation(s) since the newest training." if trigger_state else "Not looked at yet."
    ways = ["press Train now, or Start Training in Label Studio"] if new_annotations else ["it waits for annotations"]
    if settings.train_after:
        ways.append(f"it trains by itself at {settings.train_after} annotations")
    if settings.train_every_h:
        ways.append(f"it trains every {settings.train_every_h:g} h when there are new ones")
    text = "; ".join(ways)
    return f"{since} {text[0].upper()}{text[1:]}."


def _current(facts: Facts, trainers: Sequence[str], busy: str) -> Facts:
    training = dict(facts["current"])
    stage = str(training.get("stage") or "")
    training["number"] = facts["count"] + (0 if any(run["id"] == training["run"] for run in facts["rounds"]) else 1)
    record: Mapping[str, Any] = next((run for run in facts["rounds"] if run["id"] == training["run"]), {})
    training["steps"] = _steps(stage, record.get("stage_s", {}))
    training["loss_chart"] = _loss_chart(training.get("curve") or ())
    if training.get("state") == QUEUED or not stage:
        if not trainers:
            training["doing"] = "waits for a worker that takes trainings; none is alive"
        else:
            training["doing"] = (
                f"waits until the training of {busy} is over" if busy else "waits for the training worker"
            )
        return training
    training["doing"] = DOING.get(stage, stage)
    if training["of"]:
        training["doing"] += f", step {training['iteration']} of {training['of']}"
    training["doing"] += f"; {_time_left(training, facts['rounds'])}"
    return training


def _steps(stage: str, spent_s: Mapping[str, float]) -> list[tuple[str, str]]:
    """Each step with the time it took, if it is over, and its CSS class: "done", "now" or ""."""
    place = next((number for number, names in enumerate(STEPS.values()) if stage in names), -1)
    steps = []
    for number, (name, stages) in enumerate(STEPS.items()):
        took_s = sum(spent_s.get(stage_name, 0.0) for stage_name in stages)
        text = f"{name} ({duration(took_s)})" if number < place and took_s >= 1 else name
        steps.append((text, "done" if number < place else "now" if number == place else ""))
    return steps


def _time_left(training: Facts, rounds: Sequence[Mapping[str, Any]]) -> str:
    """Estimate the remaining time from the training's own estimate and the stages of the newest judged round."""
    typical: Mapping[str, float] = next(
        (run["stage_s"] for run in rounds if run["state"] in JUDGED and run.get("stage_s")), {}
    )
    stage = training["stage"]
    spent_s = time.time() - float(training.get("stage_since") or time.time())
    own_s = training.get("eta_s")
    if own_s is None and stage in typical:
        own_s = max(1.0, typical[stage] - spent_s)
    if own_s is None:
        return f"begun {duration(spent_s)} ago, the time left is known once it learns"
    later = STAGES[STAGES.index(stage) + 1 :] if stage in STAGES else ()
    if stage in LEARNS:
        later = tuple(name for name in later if name not in LEARNS)
    total_s = own_s + sum(typical.get(name, 0.0) for name in later)
    later_steps = "" if typical or stage not in LEARNS else ", then it is judged"
    return f"about {duration(total_s)} left{later_steps}"


def _round(run: Mapping[str, Any]) -> Facts:
    took_s = run["ended_at"] - (run["started_at"] or run["ended_at"])
    texts = [text for text in (*run["reasons"], run["error"], run["hint"], run["order"], run["note"]) if text]
    return {
        **run,
        "tone": TONES.get(run["state"], "bad"),
        "minutes": duration(took_s) if took_s >= 1 else "",
        "size": _size(run["snapshot_counts"], run.get("judged_by", "")),
        "scores": _scores(run),
        # A decision, or a failure with its fix, is shown at once; the rest on demand.
        "headlines": texts[:1] if run["state"] in JUDGED else texts,
        "texts": texts[1:] if run["state"] in JUDGED else [],
        "loss_chart": _loss_chart(run.get("losses") or ()),
        "papers": run["state"] in JUDGED,
    }


def _size(counts: Mapping[str, Any], judged_by: str = "") -> str:
    if not counts.get("images"):
        return ""
    objects = f" with {counts['objects']} objects" if "objects" in counts else ""
    judging = f", {counts['holdout_images']} of them held out to judge by" if "holdout_images" in counts else ""
    if judged_by:
        judging = f", judged by {judged_by}"
    return f"{counts['images']} images{objects}{judging}"


def _scores(run: Mapping[str, Any]) -> str:
    parts = []
    for name, title in (("boundary_ap", "boundary AP"), ("mask_ap", "mask AP")):
        score, earlier_score = run["metrics"].get(name), run.get("before", {}).get(name)
        if isinstance(score, int | float):
            earlier_text = f"{100 * earlier_score:.1f} → " if isinstance(earlier_score, int | float) else ""
            parts.append(f"{title} {earlier_text}{100 * score:.1f}")
    return ", ".join(parts)


def _ap_chart(rounds: Sequence[Mapping[str, Any]]) -> Markup:
    judged_rounds = [run for run in reversed(rounds) if run["state"] in JUDGED]
    if len(judged_rounds) < 2:
        return Markup("")  # the round's own line says it
    rejected_numbers = frozenset(float(run["number"]) for run in judged_rounds if run["state"] == runs.REJECTED)
    series = []
    for name, title in (("boundary_ap", "boundary AP"), ("mask_ap", "mask AP")):
        values = [(run["number"], run["metrics"].get(name)) for run in judged_rounds]
        points = [(number, 100 * value) for number, value in values if isinstance(value, int | float)]
        series.append(Series(title, points, rejected_numbers))
    return line_chart(series, x_label="round", y_label="AP", from_zero=True)


def _loss_chart(curve: Sequence[Sequence[float]]) -> Markup:
    return line_chart([Series("loss", [(x, y) for x, y in curve])], x_label="step", y_label="loss")


Point = tuple[float, float]
WIDTH, HEIGHT = 340, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 34
TICKS = 4


@dataclass(frozen=True)
class Series:
    """A named line of a chart.

    Attributes:
        rejected_x: x of points that are drawn as crosses and left out of the line.
    """

    name: str
    points: Sequence[Point]
    rejected_x: frozenset[float] = frozenset()


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, from_zero: bool = False) -> Markup:
    """An `<svg>`; "" without two points to draw.

    Args:
        from_zero: begin the vertical axis at 0, else at the lowest value.
    """
    points = [point for line in series for point in line.points if all(map(math.isfinite, point))]
    if not points or (len(points) < 2 and not from_zero):
        return Markup("")
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), is_integer=True)
    y_ticks = ticks(0.0 if from_zero else min(y for _, y in points), max(y for _, y in points))

    def place_x(value: float) -> float:
        share = (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def place_y(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def text(kind: str, words: str, attributes: str) -> str:
        return f'<text class="{kind}" {attributes}>{escape(words)}</text>'

    alt = f"{y_label} by {x_label}: " + "; ".join(
        f"{line.name} {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in series if line.points
    )
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}">']
    for tick, y in ((tick, place_y(tick)) for tick in y_ticks):
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(text("tick", f"{tick:.3g}", f'x="{LEFT - 5}" y="{y + 3.5}" text-anchor="end"'))
    for tick in x_ticks:
        where = f'x="{place_x(tick)}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle"'
        parts.append(text("tick", f"{tick:.3g}", where))
    parts.append(text("axis", x_label, f'x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle"'))
    middle = f'x="{-(TOP + HEIGHT - BOTTOM) / 2}" y="11" text-anchor="middle"'
    parts.append(text("axis", y_label, f'transform="rotate(-90)" {middle}'))
    for number, line in enumerate(series, 1):
        places = [(place_x(x), place_y(y), x in line.rejected_x) for x, y in line.points]
        path = " ".join(f"{x},{y}" for x, y, is_refused in places if not is_refused)
        parts.append(f'<polyline class="s{number}" points="{path}"/>')
        for x, y, is_refused in places:
            if is_refused:
                parts.append(f'<path class="cross s{number}" d="M{x - 4} {y - 4}l8 8m0 -8l-8 8"/>')
            elif len(places) <= 30:
                parts.append(f'<circle class="s{number}" cx="{x}" cy="{y}" r="2.5"/>')
        if len(series) > 1:
            legend_x = LEFT + 8 + (number - 1) * 110
            parts.append(f'<path class="s{number}" d="M{legend_x} {TOP + 4}h14"/>')
            parts.append(text("tick", line.name, f'x="{legend_x + 18}" y="{TOP + 7.5}"'))
    return Markup("".join([*parts, "</svg>"]))


def ticks(low: float, high: float, *, is_integer: bool = False) -> list[float]:
    """Round numbers from below `low` to above `high`, about `TICKS` of them; `is_integer`: whole numbers only."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= TICKS)
    if is_integer:
        step = max(1.0, round(step))
    first_number, last_number = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first_number, max(last_number, first_number + 1) + 1)]
