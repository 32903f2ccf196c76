"""The HTTP interface as an OpenAPI 3.1 description at /openapi.json: for client generators, gateways and the fuzzer.

POST requests but those of Label Studio and /jobs/ID/retry need the bearer token, or a form of the status page.
"""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, current_app, jsonify
from werkzeug.routing import Map, Rule

from backend.api.access import PUBLIC
from backend.predictions.projects import Event, PredictRequest, SetupRequest

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
# What the query and the paths of routes mean, beyond their type.
QUERIES: Json = {
    "jobs": {
        "project": {"type": "string"},
        "state": {"type": "string", "enum": ["queued", "running", "done", "failed", "parked"]},
        "limit": {"type": "integer", "minimum": 1, "maximum": 1000},
    },
    "cancel_all": {"project": {"type": "string"}},
}
PATHS: Json = {
    "action": {"type": "string", "enum": ["start", "cancel", "promote", "rollback"]},
    "artifact": {"type": "string", "examples": ["report.json", "MODEL_CARD.md", "pictures/0001.png"]},
}
BODIES = {"setup": "SetupRequest", "predict": "PredictRequest", "webhook": "Event"}
MEDIA = {"status": "text/html", "asset": "*/*", "round_artifact": "*/*", "metrics": "text/plain"}
OTHER = {"front": {"302": "to /status"}, "ready": {"503": "not ready"}}


@openapi.get("/openapi.json")
def describe() -> Response:
    """This description."""
    schemas: Json = {"Error": ERROR, "Prediction": PREDICTION, "Answers": ANSWERS}
    for model in (SetupRequest, PredictRequest, Event):
        schema = model.model_json_schema(by_alias=True, ref_template=REFERENCE)
        schemas |= {model.__name__: schema, **schema.pop("$defs", {})}
    facts = {
        "openapi": "3.1.0",
        "info": {"title": "Transfiner ML backend for Label Studio", "version": "1"},
        "security": [{}, {"basic": []}, {"bearer": []}],
        "paths": _paths(current_app.url_map),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "bearer": {"type": "http", "scheme": "bearer"},
                "secret": {"type": "apiKey", "in": "header", "name": "X-Transfiner-Secret"},
            },
        },
    }
    return jsonify(facts)


def _paths(routes: Map) -> Json:
    """Each route with what its function says of itself."""
    paths: Json = {}
    for rule in routes.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method in rule.methods - {"HEAD", "OPTIONS"} if rule.methods else ():
            paths.setdefault(path, {})[method.lower()] = _operation(rule)
    return paths


def _operation(rule: Rule) -> Json:
    name = rule.endpoint.rpartition(".")[2]
    is_public = rule.endpoint in PUBLIC
    schema = _reference("Answers") if name == "predict" else {}
    operation: Json = {
        "operationId": name,
        "summary": str(current_app.view_functions[rule.endpoint].__doc__).partition("\n")[0],
        "responses": {
            "200": {"description": "fine", "content": {MEDIA.get(name, "application/json"): {"schema": schema}}},
            **{status: {"description": text} for status, text in OTHER.get(name, {}).items()},
        },
        "parameters": [
            *({"name": query, "in": "query", "schema": kind} for query, kind in QUERIES.get(name, {}).items()),
            *(
                {"name": argument, "in": "path", "required": True, "schema": _path_schema(rule, argument)}
                for argument in sorted(rule.arguments)
            ),
        ],
    }
    if is_public:
        operation["security"] = [{}]
    else:
        error = {"application/json": {"schema": _reference("Error")}}
        operation["responses"]["default"] = {"description": "what was wrong, and the fix", "content": error}
    if name == "webhook":
        operation["security"] = [{}, {"secret": []}, {"basic": []}, {"bearer": []}]
    if name in BODIES:
        content = {"application/json": {"schema": _reference(BODIES[name])}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _path_schema(rule: Rule, argument: str) -> Json:
    is_number = f"<int:{argument}>" in rule.rule
    default = {"type": "integer", "minimum": 0} if is_number else {"type": "string", "minLength": 1}
    return dict(PATHS.get(argument, default))


def _reference(model: str) -> Json:
    return {"$ref": REFERENCE.format(model=model)}
