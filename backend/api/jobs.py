"""What has become of each task, for programs: list, run again, cancel."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, redirect, request

from backend.api.access import check_form
from backend.api.services import Services, services
from backend.errors import BadRequestError
from backend.queue.job_store import FINAL
from backend.queue.keys import STATS
from backend.queue.recovery import living_workers

job_routes = Blueprint("jobs", __name__)
MOST_JOBS = 1000


@job_routes.get("/jobs")
def jobs() -> Response:
    """State of each recent task: `?project=`, `?state=`, `?limit=`."""
    service = services()
    limit = min(max(request.args.get("limit", 200, int), 1), MOST_JOBS)
    rows = [
        row
        for row in service.queue.recent(MOST_JOBS)
        if _matches(row, "project", request.args.get("project")) and _matches(row, "state", request.args.get("state"))
    ][:limit]
    workers = living_workers(service.connection)
    pace_s = _seconds_per_task(service)
    for row in rows:
        if "position" in row:
            row["eta_s"] = round((row["position"] + 1) * pace_s / max(1, len(workers)), 1)
        if row["state"] in FINAL and not row.get("delivery"):
            row["delivery"] = "kept"
    return jsonify(
        jobs=rows,
        workers=workers,
        waiting=service.queue.depth(),
        deferred=service.predictions.deliveries.count_deferred(),
        projects=[project.public() for project in service.predictions.projects.newest()],
    )


def _matches(row: dict[str, Any], name: str, wanted: str | None) -> bool:
    value = row.get(name, "")
    return wanted is None or value == wanted or (name == "project" and value.partition(".")[0] == wanted)


def _seconds_per_task(service: Services) -> float:
    seconds, done = service.connection.hmget(STATS, "seconds", "tasks_done")
    return float(seconds or 0) / max(1, int(done or 0))


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
    cancelled = service.queue.cancel(project=project)
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        return redirect("../status", code=303)
    return jsonify(status="cancelled", tasks=cancelled)
