"""Replays what a real Label Studio 1.23.2 sent (tests/recordings) and judges our answers as its SDK would.

Only the images are replaced, since that Label Studio is not here.
"""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
import requests

from backend.settings import Settings
from tests.support.service import RECORDINGS, data_uri, setup_body

pytestmark = pytest.mark.service

label_interface = pytest.importorskip("label_studio_sdk.label_interface", reason="the judge is the SDK")


def exchanges(method: str, path: str) -> list[Any]:
    entries = []
    for file in sorted(RECORDINGS.glob("*.json")):
        for number, exchange in enumerate(json.loads(file.read_text()).get("exchanges", [])):
            request = exchange["request"]
            if (request["method"], request["path"]) == (method, path):
                entries.append(pytest.param(exchange, id=f"{file.stem}-{number}"))
    return entries


def distinct(cases: list[Any]) -> list[Any]:
    """Many recordings differ only in what the recorded backend answered; one of each kind of question is enough."""
    kinds = {}
    for case in cases:
        body = case.values[0]["request"]["json"]
        context = json.dumps((body["params"].get("context") or {}).get("result"))
        schemes = sorted(
            {str(value).partition(":")[0][:12] for task in body["tasks"] for value in task["data"].values()}
        )
        kinds.setdefault((body["label_config"], len(body["tasks"]), context, tuple(schemes)), case)
    return list(kinds.values())


def with_images(body: dict[str, Any]) -> dict[str, Any]:
    body = copy.deepcopy(body)
    for number, task in enumerate(body["tasks"]):
        task["data"] = dict.fromkeys(task["data"], data_uri(8 + number % 50))
    return body


@pytest.fixture
def people(settings: Settings, tmp_path) -> Settings:
    """A model that knows the labels of the recorded projects."""
    facts = {"name": "fake", "version": "fake-1", "classes": ["person", "car", "animal", "object"]}
    (tmp_path / "metadata.json").write_text(json.dumps(facts))
    return settings.model_copy(update={"model": tmp_path})


def replay(address: str, exchange: dict[str, Any], body: Any = None) -> requests.Response:
    request = exchange["request"]
    agent = {"User-Agent": request["headers"]["User-Agent"]}
    json_body = body if body is not None else request["json"]
    return requests.request(request["method"], address + request["path"], json=json_body, headers=agent, timeout=100)


@pytest.mark.parametrize("exchange", distinct(exchanges("POST", "/predict")))
def test_predictions_are_what_label_studio_stores(people, serve, workers, exchange):
    workers.start(max_batch=64, fake={"label": "person"})
    body = with_images(exchange["request"]["json"])
    answer = replay(serve(people), exchange, body)
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert len(results) == len(body["tasks"])
    judge = label_interface.LabelInterface(body["label_config"])
    for item in results:
        assert isinstance(item, dict)
        # Label Studio reads these; `precision` is for those who compare predictions.
        assert set(item) - {"precision"} == {"result", "score", "model_version"}
        assert judge.validate_prediction(item, return_errors=True) == []
    _same_region_keys(results, exchange["response"])


def _same_region_keys(results: list[Any], recorded: dict[str, Any]) -> None:
    """Our polygons have every key that the good recorded ones have."""
    good = {"id", "type", "from_name", "to_name", "original_width", "original_height", "image_rotation", "value"}
    for item in results:
        for region in item["result"]:
            assert good <= set(region)
            assert region["value"]["closed"] is True
            assert len(region["value"]["points"]) >= 3
    assert recorded["status"] in (200, 429, 500)


@pytest.mark.parametrize("exchange", exchanges("POST", "/setup"))
def test_setup_always_gives_a_version(people, serve, exchange):
    answer = replay(serve(people), exchange)
    assert answer.status_code == 200
    assert answer.json()["model_version"] == "fake-1"


@pytest.mark.parametrize("exchange", [*exchanges("GET", "/health"), *exchanges("GET", "/versions")])
def test_health_and_versions_are_json_objects_like_the_recorded_ones(people, serve, exchange):
    answer = replay(serve(people), exchange)
    assert answer.status_code == 200
    if exchange["response"]["status"] == 200:
        recorded = exchange["response"]["body"]
        assert {key: type(value) for key, value in answer.json().items() if key in recorded} == {
            key: type(value) for key, value in recorded.items()
        }


@pytest.mark.parametrize("exchange", exchanges("POST", "/webhook"))
def test_events_are_noted_and_training_is_queued_for_projects_that_are_connected(people, serve, exchange):
    address = serve(people)
    answer = replay(address, exchange)
    event = exchange["request"]["json"]
    if event["action"] == "START_TRAINING":
        assert answer.status_code == 404
        assert "Nobody has connected project" in answer.reason
        project = f"{event['project']['id']}.1795339022"
        body = setup_body("http://ls:8080", "x", project=project)
        assert requests.post(f"{address}/setup", json=body, auth=("user", "pass"), timeout=20).status_code == 200
        assert replay(address, exchange).json()["status"] == "queued"
    else:
        assert answer.status_code == 200
        assert answer.json()["status"] == "noted"


@pytest.mark.parametrize(
    ("path", "user", "password", "status"),
    [
        ("/health", "user", "pass", 200),
        ("/health", "user", "wrongpass", 401),  # Label Studio: "authentication parameters were ... incorrect"
        ("/health", None, None, 401),
        ("/setup", "user", "pass", 200),
        ("/setup", "other", "pass", 401),
        ("/setup", None, None, 401),
    ],
)
def test_basic_auth_as_recorded(people, serve, path, user, password, status):
    settings = Settings(**{**people.model_dump(), "basic_auth_user": "user", "basic_auth_password": "pass"})
    kind = exchanges("GET" if path == "/health" else "POST", path)[0].values[0]
    kind = copy.deepcopy(kind)
    headers = {"User-Agent": kind["request"]["headers"]["User-Agent"]}
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    answer = requests.request(
        kind["request"]["method"], serve(settings) + path, json=kind["request"]["json"], headers=headers, timeout=20
    )
    assert answer.status_code == status
