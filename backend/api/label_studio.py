"""The endpoints that Label Studio and monitoring call."""

from __future__ import annotations

import json
import logging
from typing import Any

from flask import Blueprint, Response, g, jsonify, redirect, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis import RedisError

from backend.api.access import untrusted_reason
from backend.api.services import services
from backend.errors import BadRequestError, ServiceError
from backend.predictions.projects import Event, PredictRequest, Project, SetupRequest, output_settings, parse
from backend.predictions.service import unusable_because
from backend.processes.supervisor import paused_parts
from backend.queue.job_queue import Requester
from backend.queue.recovery import is_interactive, living_workers
from backend.queue.train_queue import BUTTON, TrainQueue, living_trainers
from backend.versions.resolve import ServedModel, project_notice, registry_problems, required_registry, served_model
from integration.label_studio.label_config import parse_label_config

log = logging.getLogger(__name__)
routes = Blueprint("label_studio", __name__)
MODEL_CLASS = "MaskTransfiner"
# The button, or every n-th annotation (before that annotation's own event).
START_TRAINING = "START_TRAINING"
# Bodies that take at most this when decoded are not counted in the memory budget: few threads read them at once.
SMALL_BYTES = 2**18
MEMORY_WAIT_S = 2.0


def _model(project_key: str = "") -> ServedModel:
    """Read on every request (small files), so that a promoted version or replaced checkpoint is seen at once."""
    return served_model(services().settings, project_key)


def _body() -> Any:
    """The decoded JSON of the current request; its memory stays reserved until the request is answered."""
    data = request.get_data(cache=False)
    if (size := decoded_bytes(data)) > SMALL_BYTES:
        try:
            g.held.enter_context(services().memory.hold(size, timeout_s=MEMORY_WAIT_S))
        except ValueError as error:
            raise BadRequestError(
                f"What this body of {len(data) / 2**20:.1f} MiB asks takes about {size / 2**20:.0f} MiB of memory.",
                "Select fewer tasks, or raise TRANSFINER_REQUESTS_MEMORY_MIB.",
                status=413,
            ) from error
        except TimeoutError as error:
            raise ServiceError(
                "Other large requests are being answered.",
                "Ask again in a moment, select fewer tasks, or raise TRANSFINER_REQUESTS_MEMORY_MIB.",
                status=503,
            ) from error
    try:
        body = json.loads(data)
        if rb"\ud" in data.lower():
            # Half a surrogate pair is allowed in JSON and can be stored nowhere.
            json.dumps(body, ensure_ascii=False).encode()
    except (RecursionError, UnicodeEncodeError) as error:
        raise BadRequestError(f"The body cannot be read: {type(error).__name__}.", "Send plain JSON.") from error
    except ValueError:
        body = None
    if body is None:
        raise BadRequestError("The body is not JSON.", "Send a JSON object with Content-Type: application/json.")
    return body


def decoded_bytes(data: bytes) -> int:
    """Upper bound of the memory that a JSON body and its Python objects take; tests measure the factors.

    Brackets of thousands of empty lists take fifty times their size as Python objects. Text takes four bytes a
    character as soon as one character is beyond the first plane.
    """
    text = len(data) * (1 if data.isascii() else 4)
    sizes = {b"[": 100, b"{": 300, b",": 40, b'"': 30, b":": 110, b'"data"': 2000}  # the last one is a task
    return len(data) + 4 * text + sum(size * data.count(mark) for mark, size in sizes.items())


@routes.get("/")
def front() -> Response:
    """Redirect a browser to the status page; answer everybody else like /health."""
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        return redirect("status", code=302)  # type: ignore[return-value]
    return health()


@routes.get("/health")
def health() -> Response:
    """Answer at once: Label Studio waits 1 s for this JSON, so no other service is asked."""
    return jsonify(status="UP", model_class=MODEL_CLASS)


@routes.get("/ready")
def ready() -> tuple[Response, int]:
    """For load balancers: 200 when a prediction could be made now, else 503 with the reasons.

    A damaged registry is a reason: the last version goes on serving, but may be the wrong one. `paused` names parts of
    `serve` that failed and are retried from time to time; the others go on.
    """
    problems = []
    try:
        _model()
    except ServiceError as error:
        problems.append(str(error))
    try:
        if all(is_interactive(name) for name in living_workers(services().connection)):
            problems.append("No worker is alive. Start one with `transfiner worker`.")
        problems += registry_problems(services().settings, services().predictions.projects.all_keys())
    except RedisError as error:
        problems.append(f"The queue server does not answer: {type(error).__name__}.")
    return jsonify(ready=not problems, problems=problems, paused=paused_parts()), 503 if problems else 200


@routes.post("/setup")
def setup() -> Response:
    """Save the project.

    An unusable label config is not refused, because smart tools work all the same. Of the answer Label Studio shows
    only the version, so the version says why nothing is outlined.
    """
    setup_request = parse(SetupRequest, _body())
    model = _model(setup_request.project)
    config = parse_label_config(setup_request.label_config)
    reason = unusable_because(config, model)
    notice = project_notice(services().settings, setup_request.label_config, model)
    _, complaints = output_settings(services().settings, setup_request.extra_params)
    distrust = untrusted_reason(
        services().settings, setup_request.hostname, peer=request.remote_addr or "", headers=request.headers
    )
    warnings = (*config.warnings, *complaints, *filter(None, [distrust]))
    if setup_request.project:
        services().predictions.projects.save(
            Project(
                key=setup_request.project,
                hostname=setup_request.hostname.rstrip("/"),
                token=setup_request.access_token,
                label_config=setup_request.label_config,
                model_version=notice or model.version,
                reason=reason,
                notice=notice,
                warnings=warnings,
                extra_params=setup_request.extra_params,
                is_believed=not distrust,
            )
        )
    for text in (reason, *warnings):
        if text:
            log.warning("project %s: %s", setup_request.project, text)
    return jsonify(model_version=notice or model.version, model_class=MODEL_CLASS, reason=reason, warnings=warnings)


@routes.post("/predict")
def predict() -> Response:
    """Results in task order, or `{"results": []}` and a push later."""
    predict_request = parse(PredictRequest, _body())
    # waitress tells whether the client has closed its connection: nobody would read the answer.
    requester = Requester(is_gone=request.environ.get("waitress.client_disconnected", lambda: False))
    return jsonify(
        services().predictions.answer(predict_request, _model(predict_request.project), g.request_id, requester)
    )


@routes.get("/versions")
def versions() -> Response:
    """Versions that Label Studio offers in a list: the served ones of all projects, since it does not name one."""
    try:
        keys = [project.key for project in services().predictions.projects.newest()]
    except RedisError:
        keys = []
    return jsonify(versions=list(dict.fromkeys(_model(key).version for key in [*keys, ""])), message="ok")


@routes.post("/webhook")
def webhook() -> tuple[Response, int]:
    """Note that a project changed; no work is done here, since Label Studio makes the annotator wait for the answer."""
    event = parse(Event, _body())
    if event.action == START_TRAINING:
        return _start_training(event.project_id)
    if event.project_id is not None:
        try:
            services().webhook_projects.touch(event.project_id)
        except RedisError as error:
            # Losing a hint is harmless; making the annotator wait is not.
            log.warning("event of project %s not noted: %s", event.project_id, error)
    return jsonify(status="noted", event=event.action), 200


def _start_training(project_id: int | None) -> tuple[Response, int]:
    """Queue a training; the worker that takes it finds out whether there is anything to learn."""
    if project_id is None:
        raise BadRequestError("The event names no project.", "Send its id as a whole number: project.id.")
    service, project = services(), str(project_id)
    required_registry(service.settings)
    is_connected = any(key.partition(".")[0] == project for key in service.predictions.projects.all_keys())
    if not is_connected and not service.settings.label_studio_url:
        raise BadRequestError(
            f"Nobody has connected project {project} to this backend.",
            "Connect it in Label Studio under Settings > Model, or set LABEL_STUDIO_URL.",
            status=404,
        )
    answer = TrainQueue(service.connection).request(project, BUTTON)
    message = f"{answer.message} Progress: {service.settings.status_url}"
    if not living_trainers(service.connection):
        message += " No worker takes trainings now: start one with `transfiner worker --queues train`."
    log.info("project %s: %s", project, message)
    return jsonify(status="queued" if answer.is_new else "folded in", job=answer.run, message=message), 200


@routes.get("/metrics")
def metrics() -> Response:
    """All figures for Prometheus."""
    return Response(generate_latest(services().metrics.registry), content_type=CONTENT_TYPE_LATEST)
