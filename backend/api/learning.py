"""What the projects learned and learn, as JSON; papers and pictures of versions; the buttons of the status page."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response, jsonify, redirect, request

from backend.api.access import check_form
from backend.api.services import Services, services
from backend.errors import BadRequestError, ServiceError
from backend.learning.round import RunStore
from backend.queue.connection import text
from backend.queue.delivery import repredicting
from backend.queue.train_queue import BUTTON, TrainQueue, living_trainers, read_trigger_state
from backend.versions.resolve import project_name, registry_of, required_registry
from training.registry import Registry, RegistryError
from training.registry.storage import checked_name, is_artifact

learning = Blueprint("learning", __name__, url_prefix="/learning")
ROUNDS_SHOWN = 12


def learning_facts(service: Services) -> dict[str, Any]:
    """What each project learned, learns and serves; {} where learning is off."""
    registry = registry_of(service.settings)
    if registry is None:
        return {}
    store = RunStore(service.settings.registry)
    known = {project_name(project.key) for project in service.predictions.projects.newest()}
    names = sorted({*known, *store.projects()} - {""}, key=lambda name: (len(name), name))
    return {
        "trainers": living_trainers(service.connection),
        "registry": service.settings.registry,
        "projects": [_project(service, registry, store, name) for name in names],
    }


def _project(service: Services, registry: Registry, store: RunStore, name: str) -> dict[str, Any]:
    connection = service.connection
    versions = registry.versions(name)
    active = registry.active(name)
    total = store.count(name)
    return {
        "id": name,
        "active": active,
        "can_roll_back": bool(registry.pointer(name).history),
        "current": _current(TrainQueue(connection), name),
        "count": total,
        "looked": read_trigger_state(connection, name),
        "repredicting": repredicting(connection, name),
        "rounds": _rounds(store, name, total),
        "versions": [{**asdict(info), "is_active": info.name == active} for info in reversed(versions[-ROUNDS_SHOWN:])],
    }


def _current(queue: TrainQueue, project: str) -> dict[str, Any]:
    """What waits or runs now; {} for nothing."""
    facts = queue.current(project)
    if facts:
        facts["is_cancelled"] = queue.is_cancelled(project, str(facts.get("run", "")))
    return facts


def _rounds(store: RunStore, project: str, total: int) -> list[dict[str, Any]]:
    """The newest rounds, numbered from the project's first, without the gate's long figures."""
    return [
        {
            "number": total - place,
            "before": _before(run.figures),
            "judged_by": run.figures.get("holdout", {}).get("description", ""),
            **{name: value for name, value in vars(run).items() if name != "figures"},
        }
        for place, run in enumerate(store.newest(project, ROUNDS_SHOWN))
    ]


def _before(figures: dict[str, Any]) -> dict[str, Any]:
    """AP of the version that served, on the same hold-out; {} where there was none."""
    incumbent = figures.get("models", {}).get("incumbent", {})
    return {f"{kind}_ap": incumbent[kind].get("AP") for kind in ("mask", "boundary") if kind in incumbent}


@learning.get("")
def learning_overview() -> Response:
    """What the page shows, as JSON."""
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
    # A version never changes, nor does what was written of it.
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=86400"}
    return Response(content, content_type=kind, headers=headers)


@learning.post("/<int:project>/<action>")
def act(project: int, action: str) -> Any:
    """The buttons: start, cancel, promote (field `version`), rollback."""
    service = services()
    check_form(service.connection, service.settings)
    required_registry(services().settings)
    try:
        said = _do(service, str(project), action, request.form.get("version", ""))
    except RegistryError as error:
        raise BadRequestError(str(error), status=409) from error
    # Whoever watches the project gives the backend in Label Studio its new title.
    service.predictions.projects.touch(project)
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        return redirect("../../status", code=303)
    return jsonify(status=said)


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
        f"There is no button {text(action)[:40]!r}.", "start, cancel, promote and rollback are.", status=404
    )
