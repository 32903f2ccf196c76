"""Hostile and mutated input: never a 5xx, always JSON, nothing grows.

`TRANSFINER_FUZZ_EXAMPLES` raises the number of inputs of each test for a long run.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.api.app import create_app
from tests.support.service import RECORDINGS, predict_body, setup_body, tasks

pytestmark = pytest.mark.service

EXAMPLES = int(os.environ.get("TRANSFINER_FUZZ_EXAMPLES", "60"))
LENIENT = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
PATHS = ("/setup", "/predict", "/webhook")
ODD = [None, True, -1, 0, 1e308, float("nan"), "", "\0", "\ud800x", "'; --", "<View>" * 50, "a" * 5000, [], {}, [[[]]]]


def recorded() -> list[tuple[str, Any]]:
    bodies = [("/setup", setup_body("http://ls", "t")), ("/predict", predict_body(tasks(2)))]
    for file in sorted(RECORDINGS.glob("*.json")):
        for exchange in json.loads(file.read_text()).get("exchanges", []):
            request = exchange["request"]
            if request["path"] in PATHS and len(json.dumps(request["json"])) < 20_000:
                bodies.append((request["path"], request["json"]))
    return bodies


BODIES = recorded()


@pytest.fixture(scope="module")
def client(queue_server, checkpoint, tmp_path_factory):
    from backend.settings import Settings

    promises = tmp_path_factory.mktemp("promises")
    app = create_app(Settings(redis_url=queue_server.url, model=checkpoint, promises_folder=promises))
    service = app.extensions["transfiner"]
    service.queue.is_stopping = True
    with app.test_client() as client:
        yield client
    service.close()


def judge(answer: Any) -> None:
    # 504: a prompt that is one waits for a worker, and there is none here.
    assert answer.status_code < 500 or answer.status_code in (501, 504), answer.text
    body = answer.get_json()
    assert isinstance(body, dict)
    if answer.status_code >= 400:
        assert set(body) == {"error", "hint", "request_id"}
    assert "\n" not in answer.status
    assert "Traceback" not in answer.text


def send(client: Any, path: str, body: Any) -> Any:
    text = json.dumps(body, allow_nan=True)
    return client.post(path, data=text.encode("utf-8", "surrogatepass"), content_type="application/json")


@LENIENT
@given(path=st.sampled_from(PATHS), body=JSON)
def test_any_json(client, path, body):
    judge(send(client, path, body))


@LENIENT
@given(path=st.sampled_from(PATHS), data=st.binary(max_size=200))
def test_any_bytes(client, path, data):
    judge(client.post(path, data=data, content_type="application/json"))


@LENIENT
@given(seed=st.integers(0, 2**32))
def test_mutated_recordings(client, seed):
    luck = random.Random(seed)
    path, body = luck.choice(BODIES)
    body = copy.deepcopy(body)
    for _ in range(luck.randint(1, 4)):
        mutate(body, luck)
    judge(send(client, path, body))


def mutate(node: Any, luck: random.Random) -> None:
    """Replace, drop or add something somewhere below `node`."""
    while isinstance(node, dict | list) and node:
        key = luck.choice(list(node)) if isinstance(node, dict) else luck.randrange(len(node))
        if luck.random() < 0.4 or not isinstance(node[key], dict | list):
            change = luck.random()
            if change < 0.2:
                del node[key]
            elif change < 0.3 and isinstance(node, dict):
                node[luck.choice(["context", "tasks", "data", "id", "x"])] = copy.deepcopy(node[key])
            elif isinstance(node[key], str) and change < 0.6:
                text = node[key]
                at = luck.randrange(len(text) + 1)
                node[key] = text[:at] + luck.choice(["<", ">", '"', "&", "é", "\0", ""]) + text[at + 1 :]
            else:
                node[key] = copy.deepcopy(luck.choice(ODD))
            return
        node = node[key]


@LENIENT
@given(
    headers=st.dictionaries(
        st.sampled_from(["X-Request-Id", "Authorization", "User-Agent", "Accept"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80),
    )
)
def test_any_headers(client, headers):
    for path in ("/health", "/versions", "/jobs", "/"):
        assert client.get(path, headers=headers).status_code in (200, 302)


@LENIENT
@given(query=st.text(max_size=30), job=st.text(min_size=1, max_size=30))
def test_any_query_and_path(client, query, job):
    assert client.get("/jobs", query_string={"limit": query, "state": query, "project": query}).status_code == 200
    assert client.post(f"/jobs/{quote(job.encode('utf-8', 'replace'), safe='')}/retry").status_code in (404, 405, 308)


@pytest.mark.parametrize("depth", [*range(850, 1000, 10), 3000, 100_000])
@pytest.mark.parametrize(
    "body",
    [
        '{"project": "1.1", "schema": "<View/>", "extra_params": "DEEP"}',
        '{"project": "1.1", "schema": "<View/>", "extra_params": {"a": DEEP}}',
        '{"tasks": [{"id": 1, "data": {"image": DEEP}}]}',
        '{"tasks": [{"id": 1, "data": {"image": "x"}}], "params": {"context": {"result": DEEP}}}',
        '{"action": "PROJECT_UPDATED", "project": {"id": DEEP}}',
        "DEEP",
    ],
)
def test_deep_nesting(client, body, depth):
    """Parsers, validators and writers each have their own limit."""
    text = body.replace("DEEP", "[" * depth + "]" * depth)
    for path in PATHS:
        judge(client.post(path, data=text, content_type="application/json"))


def test_cases_of_the_description(client):
    """schemathesis reads /openapi.json and makes requests of it, good and bad ones."""
    schema = schemathesis.openapi.from_wsgi("/openapi.json", client.application)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert {"POST /setup", "POST /predict", "POST /webhook", "POST /jobs/{job_id}/retry"} <= {
        operation.label for operation in operations
    }

    for operation in operations:

        @settings(LENIENT, max_examples=max(3, EXAMPLES // 11))
        @given(case=operation.as_strategy())
        def cases(case):
            answer = case.call(headers={"X-Request-Id": "fuzz"})
            assert answer.status_code < 500 or answer.status_code in (501, 503), answer.text
            assert "Traceback" not in answer.text

        cases()


def test_every_route_and_method_is_described(client):
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method)
        for rule in client.application.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    paths = client.get("/openapi.json").get_json()["paths"]
    assert routes == {(path, method.upper()) for path, methods in paths.items() for method in methods}
    operations = [operation for methods in paths.values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
