"""What requests take of the API's memory and disk is bounded, and whoever finds no room is told."""

from __future__ import annotations

import json
import threading
import tracemalloc

import pytest
import requests
import yaml

from backend.api import http_server
from backend.api.app import create_app
from backend.api.label_studio import decoded_bytes
from backend.devtools.service_figures import large_bodies_row
from backend.predictions.projects import PredictRequest, parse
from tests.support.service import CONFIG, ROOT, tasks, wait_until
from tests.support.slow_clients import connections

pytestmark = pytest.mark.service
BYTES = 400_000


def repeated(unit: str) -> str:
    return f"[{','.join([unit] * (BYTES // (len(unit) + 1)))}]"


SHAPES = {
    "empty lists": repeated("[]"),
    "lists": repeated("[0]"),
    "nested lists": repeated("[" * 400 + "]" * 400),
    "empty objects": repeated("{}"),
    "objects": repeated('{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6}'),
    "nested objects": repeated('{"a":' * 400 + "0" + "}" * 400),
    "names": "{" + ",".join(f'"{number}":0' for number in range(BYTES // 10)) + "}",
    "numbers": repeated("0.1"),
    "words": repeated('"ab"'),
    "foreign words": repeated('"é"'),
    "text": json.dumps("x" * BYTES),
    "text with one picture": json.dumps("x" * BYTES + "\U0001f600", ensure_ascii=False),
}


@pytest.mark.parametrize("shape", [*SHAPES, "many tasks"])
def test_no_json_takes_more_memory_than_is_reckoned(shape):
    items = [f'{{"id":1,"data":{{"junk":{SHAPES[shape]}}}}}'] if shape in SHAPES else map(json.dumps, tasks(5000))
    data = f'{{"tasks":[{",".join(items)}],"project":"7.1"}}'.encode()
    tracemalloc.start()
    try:
        request = parse(PredictRequest, json.loads(data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert request.tasks
    assert peak + len(data) <= decoded_bytes(data)


def test_a_body_that_would_take_all_memory_is_refused_and_one_that_finds_none_free_is_told_to_come_again(settings):
    app = create_app(settings.model_copy(update={"requests_memory_mib": 4.0}))
    client, service = app.test_client(), app.extensions["transfiner"]
    large = {"project": "7.1", "schema": CONFIG, "extra_params": {"a": [[]] * 60_000}}
    assert client.post("/setup", json=large).status_code == 413
    with service.memory.hold(3 * 2**20):
        answer = client.post("/setup", json={**large, "extra_params": {"a": [[]] * 10_000}})
    assert answer.status_code == 503
    assert "large requests" in answer.status
    assert client.post("/setup", json={**large, "extra_params": {}}).status_code == 200
    assert service.memory._used_bytes == 0


def test_bodies_are_read_up_to_a_bound_of_all_together(settings, serve, monkeypatch):
    """The others are told at once, before they have sent anything; bodies that end make room."""
    monkeypatch.setattr(http_server, "BODIES", 2)
    address = serve(settings.model_copy(update={"max_request_mib": 1.0}))
    header = b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    with connections(address, 3) as clients:
        for client in clients[:2]:
            client.sendall(header)
        assert requests.get(f"{address}/health", timeout=60).status_code == 200
        clients[2].sendall(header)
        assert clients[2].recv(4096).startswith(b"HTTP/1.1 503 Too many large requests")
        clients[0].sendall(b" " * 999_999 + b"1")
        assert clients[0].recv(4096).startswith(b"HTTP/1.1 400")
        wait_until(lambda: len(http_server._Request.bodies) == 1)
        with connections(address, 1) as (late,):
            late.sendall(header + b" " * 999_999 + b"1")
            assert late.recv(4096).startswith(b"HTTP/1.1 400")
    wait_until(lambda: not http_server._Request.bodies)


def test_many_large_bodies_at_once_stay_below_the_memory_that_compose_gives_the_api():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    row = large_bodies_row()
    assert row["api"] < int(services["api"]["mem_limit"].removesuffix("m")), row


def test_a_body_that_finds_no_room_on_the_disk_is_answered(settings, serve, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("waitress.buffers.TempfileBasedBuffer.append", full)
    answers = []
    address = serve(settings)

    def send() -> None:
        answers.append(requests.post(f"{address}/setup", json={"schema": "x" * 2**20}, timeout=60))

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    assert [answer.status_code for answer in answers] == [503]
    assert requests.get(f"{address}/health", timeout=60).status_code == 200
