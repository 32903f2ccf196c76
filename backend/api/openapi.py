"""The HTTP interface as an OpenAPI 3.1 description at /openapi.json: for client generators, gateways and the fuzzer.

POST requests but those of Label Studio and /jobs/ID/retry need the bearer token, or a form of the status page.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify
from pydantic import BaseModel

from backend.predictions.schemas import PredictRequest, SetupRequest

openapi = Blueprint("openapi", __name__)
Json = dict[str, Any]
REFERENCE = "#/components/schemas/{model}"

ERROR: Json = {
    "type": "object",
    "required": ["error", "hint", "request_id"],
    "properties": {name: {"type": "string"} for name in ("error", "hint", "request_id")},
}
PREDICTION: Json = {
    "type": "object",
    "required": ["result", "score", "model_version"],
    "properties": {
        "result": {"type": "array", "items": {"type": "object"}, "description": "Label Studio regions."},
        "score": {"type": ["number", "null"], "description": "Certainty; the lowest is shown first."},
        "model_version": {"type": "string"},
        "precision": {"type": "string", "description": "Of the network: fp32, bf16 or mixed."},
    },
}
ANSWERS: Json = {
    "type": "object",
    "required": ["results"],
    "properties": {
        "results": {
            "type": "array",
            "description": "One for each task in order, [] for one that failed; empty: deferred, pushed later.",
            "items": {"anyOf": [{"$ref": "#/components/schemas/Prediction"}, {"type": "array", "maxItems": 0}]},
        },
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}
EVENT: Json = {
    "type": "object",
    "required": ["action"],
    "properties": {"action": {"type": "string"}, "project": {"type": "object"}},
    "description": "START_TRAINING asks for training; all others only say that something changed.",
}
LIMIT: Json = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}}
PROJECT: Json = {"name": "project", "in": "query", "schema": {"type": "string"}}
STATE: Json = {
    "name": "state",
    "in": "query",
    "schema": {"type": "string", "enum": ["queued", "running", "done", "failed", "parked"]},
}
PROJECT_ID: Json = {"name": "project", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
VERSION: Json = {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
ARTIFACT: Json = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "examples": ["report.json", "MODEL_CARD.md", "pictures/0001.png"]},
}
ASSET: Json = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
ACTION: Json = {
    "name": "action",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "enum": ["start", "cancel", "promote", "rollback"]},
}
JOB: Json = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def description() -> Json:
    """The whole description."""
    schemas: Json = {"Error": ERROR, "Prediction": PREDICTION, "Answers": ANSWERS, "Event": EVENT}
    for model in (SetupRequest, PredictRequest):
        schemas |= _schemas(model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Transfiner ML backend for Label Studio", "version": "1"},
        "security": [{}, {"basic": []}, {"bearer": []}],
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "bearer": {"type": "http", "scheme": "bearer"},
                "secret": {"type": "apiKey", "in": "header", "name": "X-Transfiner-Secret"},
            },
        },
    }


def _paths() -> Json:
    return {
        "/": {"get": _operation("front", "What /health says; browsers are led to /status", other={302: "to /status"})},
        "/health": {"get": _operation("health", "Alive; always fast", public=True)},
        "/ready": {"get": _operation("ready", "Could predict now", public=True, other={503: "not ready"})},
        "/setup": {"post": _operation("setup", "Label Studio introduces a project", body="SetupRequest")},
        "/predict": {"post": _operation("predict", "Predict tasks", body="PredictRequest", answer="Answers")},
        "/versions": {"get": _operation("versions", "Model versions")},
        "/webhook": {"post": _operation("webhook", "An event of Label Studio", body="Event", secret=True)},
        "/jobs": {"get": _operation("jobs", "State of recent tasks", parameters=[PROJECT, STATE, LIMIT])},
        "/jobs/{job_id}/retry": {"post": _operation("retry", "Run a failed or parked task again", parameters=[JOB])},
        "/jobs/{job_id}/cancel": {
            "post": _operation("cancel", "Cancel a task that no worker has taken", parameters=[JOB])
        },
        "/jobs/cancel": {
            "post": _operation("cancel_all", "Cancel all that waits, or of one project", parameters=[PROJECT])
        },
        "/status": {"get": _operation("status", "The same for people", media="text/html")},
        "/status/{name}": {
            "get": _operation("asset", "Style sheet and script of the page", parameters=[ASSET], media="*/*")
        },
        "/learning": {"get": _operation("learning_overview", "What each project learned, learns and serves")},
        "/learning/{project}/versions/{version}/{name}": {
            "get": _operation(
                "round_artifact",
                "Report, model card and pictures of a version",
                parameters=[PROJECT_ID, VERSION, ARTIFACT],
                media="*/*",
            )
        },
        "/learning/{project}/{action}": {
            "post": _operation(
                "act", "Train, cancel, promote (field `version`), roll back", parameters=[PROJECT_ID, ACTION]
            )
        },
        "/metrics": {"get": _operation("metrics", "For Prometheus", media="text/plain")},
        "/openapi.json": {"get": _operation("openapi", "This description")},
    }


def _operation(
    name: str,
    summary: str,
    *,
    body: str = "",
    answer: str = "",
    parameters: list[Json] | None = None,
    media: str = "application/json",
    public: bool = False,
    secret: bool = False,
    other: dict[int, str] | None = None,
) -> Json:
    schema = {"$ref": REFERENCE.format(model=answer)} if answer else {}
    operation: Json = {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "fine", "content": {media: {"schema": schema}}},
            **{str(status): {"description": text} for status, text in (other or {}).items()},
        },
    }
    if not public:
        error = {"application/json": {"schema": {"$ref": REFERENCE.format(model="Error")}}}
        operation["responses"]["default"] = {"description": "what was wrong, and the fix", "content": error}
    if public or secret:
        operation["security"] = [{}] if public else [{}, {"secret": []}, {"basic": []}, {"bearer": []}]
    if parameters:
        operation["parameters"] = parameters
    if body:
        content = {"application/json": {"schema": {"$ref": REFERENCE.format(model=body)}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _schemas(model: type[BaseModel]) -> Json:
    """The schema of a model and of those inside it, by name."""
    schema = model.model_json_schema(by_alias=True, ref_template=REFERENCE)
    inner: Json = schema.pop("$defs", {})
    return {model.__name__: schema, **inner}


@openapi.get("/openapi.json")
def describe() -> Response:
    """The description as JSON."""
    return jsonify(description())
