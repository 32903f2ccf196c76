"""The HTTP application. Imports no torch: one API process stays small beside the workers."""

from __future__ import annotations

import contextlib
import logging
import re
import time
import uuid

from flask import Flask, Response, current_app, g, jsonify, request
from redis import OutOfMemoryError, RedisError
from werkzeug.exceptions import HTTPException

from backend.api.access import SECURITY_HEADERS, authorise, check_origin
from backend.api.label_studio import routes
from backend.api.learning import learning
from backend.api.openapi import openapi
from backend.api.services import make_services
from backend.api.status import job_routes, status_page
from backend.errors import QueueUnavailableError, ServiceError
from backend.settings import Settings
from training.registry import RegistryError

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application for any WSGI server; without settings they are read from the environment."""
    settings = settings or Settings()
    app = Flask("transfiner", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = int(settings.max_request_mib * 2**20)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions["transfiner"] = make_services(settings)
    app.register_blueprint(routes)
    app.register_blueprint(job_routes)
    app.register_blueprint(status_page)
    app.register_blueprint(learning)
    app.register_blueprint(openapi)
    app.before_request(_begin)
    app.before_request(lambda: check_origin(settings))
    app.before_request(lambda: authorise(settings))
    app.after_request(_end)
    app.teardown_request(lambda _: g.held.close())
    app.register_error_handler(Exception, _failed)
    return app


def _begin() -> None:
    request_id = request.headers.get("X-Request-Id", "")
    g.request_id = request_id if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", request_id) else uuid.uuid4().hex[:16]
    g.begun = time.monotonic()
    g.held = contextlib.ExitStack()


def _end(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.get("request_id", "")
    response.headers.update(SECURITY_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    begun = g.get("begun")
    if begun is not None:
        seconds = time.monotonic() - begun
        endpoint = (request.endpoint or "unknown").rpartition(".")[2]
        current_app.extensions["transfiner"].metrics.request_seconds.labels(endpoint, response.status_code).observe(
            seconds
        )
        log.log(
            logging.DEBUG if endpoint in ("health", "metrics", "ready") else logging.INFO,
            "%s %s %d in %.3f s",
            request.method,
            request.path,
            response.status_code,
            seconds,
            extra={"request_id": response.headers["X-Request-Id"]},
        )
    return response


def _failed(error: Exception) -> Response:
    """`{error, hint, request_id}`, never a traceback; the reason also as HTTP reason phrase."""
    failure = _explain(error)
    request_id = g.get("request_id", "")
    if failure.status >= 500 and not isinstance(error, ServiceError | RedisError | RegistryError):
        log.exception("request %s failed", request_id, exc_info=error)
    elif failure.status not in (401, 404):
        log.warning("request %s: %s", request_id, failure)
    response = jsonify(error=failure.error, hint=failure.hint, request_id=request_id)
    # Label Studio drops our body but shows the reason phrase: nothing else reaches the annotator.
    response.status = f"{failure.status} {_reason_phrase(failure.error)}"
    if failure.status == 401:
        response.headers["WWW-Authenticate"] = 'Basic realm="transfiner"'
    return response


def _explain(error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, OutOfMemoryError):
        return QueueUnavailableError(
            "The queue server is full.",
            "Wait until waiting tasks are done, or raise its maxmemory; nothing that it has is lost.",
        )
    if isinstance(error, RedisError):
        return QueueUnavailableError(
            f"The queue server does not answer ({type(error).__name__}).",
            "Check that it runs and that TRANSFINER_REDIS_URL names it.",
        )
    if isinstance(error, RegistryError):
        return ServiceError(
            f"The registry cannot be read: {error}",
            "Restore it from a backup, or correct TRANSFINER_REGISTRY.",
            status=503,
        )
    if isinstance(error, RecursionError):
        return ServiceError("The request is nested too deeply.", "Send plain JSON.", status=400)
    if isinstance(error, HTTPException):
        return ServiceError(error.description or error.name, status=error.code or 500)
    return ServiceError("An internal error.", "The log of the API has more under this request id.")


def _reason_phrase(text: str) -> str:
    """One line of plain ASCII, as HTTP wants it."""
    return re.sub(r"[^\x20-\x7e]+", " ", text)[:200].strip() or "Error"
