"""The status page: queue, workers, projects, recent errors with their fix. Plain HTML that refreshes itself."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from flask import Blueprint, current_app, render_template
from redis import RedisError

from backend.api.csrf import form_token
from backend.api.learning import learning_facts
from backend.api.services import Services
from backend.errors import ServiceError
from backend.predictions.projects import Project
from backend.queue.job_store import FAILED, FINAL, PARKED, QUEUED, RUNNING
from backend.queue.keys import STATS
from backend.queue.recovery import is_interactive, living_workers
from backend.versions.served_model import read_served_model
from training.registry import RegistryError

status_page = Blueprint("status_page", __name__, template_folder="templates")
REFRESH_S = 4
# The page looks at this many of the newest tasks and lists the first of them.
LOOK_AT, LIST, LIST_ERRORS = 1000, 60, 10


@status_page.app_template_filter("ago")
def ago(moment: str | float | None) -> str:
    """How long ago a unix time was."""
    if not moment:
        return ""
    seconds = max(0, time.time() - float(moment))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


@status_page.get("/status")
def status() -> str:
    """For people; works on a phone."""
    service: Services = current_app.extensions["transfiner"]
    facts: dict[str, Any] = {
        "problems": [],
        "rows": [],
        "workers": {},
        "projects": [],
        "errors": [],
        "figures": [],
    }
    try:
        facts["model"] = read_served_model(service.settings.model).version
    except ServiceError as error:
        facts["problems"].append(str(error))
    try:
        facts.update(_from_redis(service))
        facts["learning"] = learning_facts(service)
    except RedisError as error:
        facts["problems"].append(f"The queue server does not answer: {type(error).__name__}.")
    except (OSError, RegistryError) as error:
        facts["problems"].append(f"The registry {service.settings.registry} cannot be read: {error}")
    return render_template("status.html", refresh_s=REFRESH_S, **facts)


def _from_redis(service: Services) -> dict[str, Any]:
    records = service.queue.records.recent(LOOK_AT)
    for row in records:
        row["project_id"] = row.get("project", "").partition(".")[0]
    counts = {state: sum(row["state"] == state for row in records) for state in (QUEUED, RUNNING, FAILED, PARKED)}
    workers = living_workers(service.connection)
    waiting = sum(service.queue.depth().values())
    # Figures of the present load: everything asked for since the oldest task that is still waiting.
    open_since = min((row["queued_at"] for row in records if row["state"] not in FINAL), default="")
    load = [row for row in records if open_since and row.get("queued_at", "") >= open_since]
    return {
        "headline": f"{waiting} waiting, {counts[RUNNING]} running",
        "figures": [
            ("waiting", waiting),
            ("running", counts[RUNNING]),
            ("to be pushed", service.predictions.deliveries.count_deferred()),
            ("failed", counts[FAILED] + counts[PARKED]),
            ("workers", len(workers)),
        ],
        "total": len(load),
        "ended": sum(row["state"] in FINAL for row in load),
        "eta": _eta(service, waiting, sum(not is_interactive(name) for name in workers)),
        "workers": workers,
        "projects": [project_row(project) for project in service.predictions.projects.all()],
        "waiting_of": Counter(row["project_id"] for row in records if row["state"] == QUEUED),
        "waiting": waiting,
        "form_token": form_token(service.connection),
        "errors": [row for row in records if row["state"] in (FAILED, PARKED)][:LIST_ERRORS],
        "rows": records[:LIST],
    }


def project_row(project: Project) -> dict[str, Any]:
    """What the page shows of a project, with its address in Label Studio where that is a web address."""
    is_web = project.hostname.startswith(("http://", "https://"))
    link = f"{project.hostname}/projects/{project.id}/data" if is_web and project.is_believed else ""
    return {**project.public(), "id": project.id, "link": link}


def _eta(service: Services, waiting: int, workers: int) -> str:
    seconds, done = service.connection.hmget(STATS, "seconds", "tasks_done")
    left_s = waiting * float(seconds or 0) / max(1, int(done or 0)) / max(1, workers)
    return f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s" if left_s >= 1 else ""
