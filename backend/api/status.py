"""State of each task: for programs (/jobs: list, run again, cancel) and on the status page.

The page shows waiting and running tasks, each project with its rounds, workers, recent errors with their fix. HTML from
the server; a small script loads it again and replaces what has changed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, redirect, render_template, request, send_from_directory
from redis import RedisError

from backend.api.access import check_form, form_token
from backend.api.learning import duration, learning_facts, project_view
from backend.api.services import Services, services
from backend.errors import BadRequestError, ServiceError
from backend.predictions.projects import Project
from backend.processes.supervisor import paused_parts
from backend.queue.job_store import DONE, FAILED, FINAL, PARKED, QUEUED, RUNNING
from backend.queue.keys import STATS
from backend.queue.recovery import is_interactive, living_workers
from backend.queue.train_queue import RUNNING as TRAINS
from backend.versions.resolve import read_served_model
from training.registry import RegistryError

status_page = Blueprint("status_page", __name__, template_folder="templates")
REFRESH_S = 4
STATIC = Path(__file__).parent / "static"
CLASSES = {DONE: "good", FAILED: "bad", PARKED: "bad", RUNNING: "busy", QUEUED: "busy"}
# The page looks at this many of the newest tasks and lists the first of them.
LOOK_AT, LIST, LIST_ERRORS = 1000, 30, 10


@status_page.app_template_filter("ago")
def ago(moment: str | float | None) -> str:
    """Format how long ago a unix time was."""
    if not moment:
        return ""
    seconds = max(0, time.time() - float(moment))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


@status_page.get("/status")
def status() -> str:
    """The status page, for people; works on a phone."""
    service = services()
    facts: dict[str, Any] = {"problems": paused_parts(), "projects": [], "names": {}}
    facts |= {"workers": {}, "trainers": {}, "rows": [], "figures": []}
    try:
        facts["model"] = read_served_model(service.settings.model).version
    except ServiceError as error:
        facts["problems"].append(str(error))
    try:
        facts.update(_tasks(service))
        facts.update(_projects(service, facts["waiting_of"]))
    except RedisError as error:
        facts["problems"].append(f"The queue server does not answer: {type(error).__name__}.")
    except (OSError, RegistryError) as error:
        facts["problems"].append(f"The registry {service.settings.registry} cannot be read: {error}")
    return render_template("status.html", refresh_s=REFRESH_S, classes=CLASSES, **facts)


@status_page.get("/status/<name>")
def asset(name: str) -> Response:
    """Style sheet and script of the page."""
    return send_from_directory(STATIC, name, max_age=3600)


def _tasks(service: Services) -> dict[str, Any]:
    """Queue and workers. Tasks without a project, such as those of an evaluation, are counted but not listed."""
    records = service.queue.records.recent(LOOK_AT)
    for row in records:
        row["project_id"] = row.get("project", "").partition(".")[0]
    project_rows = [row for row in records if row["project_id"].isdigit()]
    counts = {state: sum(row["state"] == state for row in records) for state in (QUEUED, RUNNING, FAILED, PARKED)}
    workers = living_workers(service.connection)
    waiting = sum(service.queue.depth().values())
    left_s = waiting * _seconds_per_task(service) / _batch_workers(workers)
    # Figures of the present load: everything asked for since the oldest task that is still waiting.
    open_since = min((row["queued_at"] for row in records if row["state"] not in FINAL), default="")
    load = [row for row in records if open_since and row.get("queued_at", "") >= open_since]
    figures = [
        ("waiting", waiting),
        ("running", counts[RUNNING]),
        ("to be pushed", service.predictions.deliveries.count_deferred()),
        ("failed", counts[FAILED] + counts[PARKED]),
    ]
    return {
        "headline": f"{waiting} waiting, {counts[RUNNING]} running",
        "figures": figures,
        "total": len(load),
        "ended": sum(row["state"] in FINAL for row in load),
        "eta": duration(left_s) if left_s >= 1 else "",
        "workers": {name: {**row, "takes_prompts": is_interactive(name)} for name, row in workers.items()},
        "waiting_of": Counter(row["project_id"] for row in records if row["state"] == QUEUED),
        "waiting": waiting,
        "form_token": form_token(service.connection),
        "errors": [row for row in records if row["state"] in (FAILED, PARKED)][:LIST_ERRORS],
        "rows": project_rows[:LIST],
    }


def _projects(service: Services, waiting_of: Counter[str]) -> dict[str, Any]:
    """Projects of /setup and of the registry; those that train come first, then by their newest round."""
    connected_projects: dict[str, Project] = {}
    for project in sorted(service.predictions.projects.newest(), key=lambda project: project.seen_at):
        connected_projects[project.id] = project
    learning = learning_facts(service)
    facts_of = {facts["id"]: facts for facts in learning.get("projects", ())}
    training = [facts for facts in facts_of.values() if facts["current"].get("state") == TRAINS]
    busy = (training[0]["looked"].get("title") or f"project {training[0]['id']}") if training else ""
    trainers = learning.get("trainers", [])
    views = [
        project_view(
            service.settings,
            connected_projects.get(name),
            facts_of.get(name, {}),
            waiting=waiting_of[name],
            trainers=trainers,
            busy=busy,
        )
        for name in {*connected_projects, *facts_of}
    ]
    # The sender of /setup names the project: not each name is a number.
    newest = {view["id"]: max((run["ended_at"] for run in view["rounds"]), default=0.0) for view in views}
    views.sort(key=lambda view: (not view["current"], -newest[view["id"]], len(view["id"]), view["id"]))
    return {
        "learning": bool(learning),
        "projects": views,
        "names": {view["id"]: view["name"] for view in views},
        "trainers": {name: _work_of(name, views) for name in trainers},
    }


def _work_of(trainer: str, views: list[dict[str, Any]]) -> str:
    for view in views:
        training = view["current"]
        if training and training.get("worker") in (trainer, None) and training.get("state") == TRAINS:
            return f"trains {view['name']}, round {training['number']}"
    return ""


job_routes = Blueprint("jobs", __name__)


@job_routes.get("/jobs")
def jobs() -> Response:
    """State of each recent task: `?project=`, `?state=`, `?limit=`."""
    service = services()
    limit = min(max(request.args.get("limit", 200, int), 1), LOOK_AT)
    rows = [
        row
        for row in service.queue.recent(LOOK_AT)
        if _matches(row, "project", request.args.get("project")) and _matches(row, "state", request.args.get("state"))
    ][:limit]
    workers = living_workers(service.connection)
    pace_s = _seconds_per_task(service)
    for row in rows:
        if "position" in row:
            row["eta_s"] = round((row["position"] + 1) * pace_s / _batch_workers(workers), 1)
        if row["state"] in FINAL and not row.get("delivery"):
            row["delivery"] = "kept"
    return jsonify(
        jobs=rows,
        workers=workers,
        waiting=service.queue.depth(),
        deferred=service.predictions.deliveries.count_deferred(),
        projects=[project.public() for project in service.predictions.projects.newest()],
    )


def _matches(row: dict[str, Any], name: str, expected: str | None) -> bool:
    value = row.get(name, "")
    return expected is None or value == expected or (name == "project" and value.partition(".")[0] == expected)


def _batch_workers(workers: Collection[str]) -> int:
    """How many of the living workers take waiting tasks, at least one; the interactive one answers prompts alone."""
    return max(1, sum(not is_interactive(name) for name in workers))


def _seconds_per_task(service: Services) -> float:
    seconds, task_count = service.connection.hmget(STATS, "seconds", "tasks_done")
    return float(seconds or 0) / max(1, int(task_count or 0))


@job_routes.post("/jobs/<job_id>/retry")
def retry(job_id: str) -> Response:
    """Run a failed or parked task again."""
    if not services().queue.retry(job_id):
        raise BadRequestError(f"No failed or parked job {job_id[:80]!r}.", "GET /jobs lists them.", status=404)
    return jsonify(status="queued", job=job_id)


@job_routes.post("/jobs/<job_id>/cancel")
def cancel_one(job_id: str) -> Response:
    """Cancel a task that no worker has taken."""
    service = services()
    check_form(service.connection, service.settings)
    if not service.queue.cancel(job_id=job_id):
        raise BadRequestError(
            f"No job {job_id[:80]!r} is waiting; what a worker has begun goes on to its end.",
            "GET /jobs?state=queued lists those that wait.",
            status=404,
        )
    return jsonify(status="cancelled", job=job_id)


@job_routes.post("/jobs/cancel")
def cancel_all() -> Any:
    """Cancel all that waits, or with the field or parameter `project` what waits of one; a button on the page."""
    service = services()
    check_form(service.connection, service.settings)
    project = request.values.get("project", "")
    task_count = service.queue.cancel(project=project)
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        return redirect("../status", code=303)
    return jsonify(status="cancelled", tasks=task_count)
