"""The API client and its tokens, legacy and personal, against a real HTTP server that answers as recorded."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from integration.label_studio.client import (
    ASSUMED_LIFE_S,
    ClientError,
    LabelStudioAuth,
    LabelStudioClient,
    is_personal_access_token,
    life_s,
)

pytestmark = pytest.mark.service

RECORDINGS = Path(__file__).parents[2] / "recordings"
REFRESH = "/api/token/refresh/"
KEY = "0123456789abcdef0123456789abcdef01234567"
PERSONAL = "aaa.bbb.ccc"


def recorded(name: str) -> Any:
    (path,) = RECORDINGS.glob(f"{name}*.json")
    return json.loads(path.read_text())["data"]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("integration.label_studio.client._RETRY_WAIT_S", 0.0)


@pytest.fixture
def client(loopback: Any) -> LabelStudioClient:
    return LabelStudioClient(loopback.url + "/", KEY)


def test_every_request_carries_the_key_but_health_none(loopback: Any, client: LabelStudioClient) -> None:
    loopback.give("/health", {"status": "UP"})
    loopback.give("/api/current-user/whoami", {"email": "a@b.c"})
    assert client.health() == {"status": "UP"}
    assert client.whoami() == {"email": "a@b.c"}
    assert [request.headers.get("Authorization") for request in loopback.requests] == [None, f"Token {KEY}"]


def test_recorded_answers_pass_through(loopback: Any, client: LabelStudioClient) -> None:
    loopback.give("/api/projects/1", recorded("72_"))
    loopback.give("/api/ml", recorded("71_"))
    loopback.give("/api/webhooks", recorded("74_"))
    loopback.give("/api/predictions", recorded("75_"))
    loopback.give("/api/projects/1/export", recorded("70_"))
    assert client.get_project(1)["title"] == "poly"
    assert client.list_backends(1)[0]["title"] == "transfiner"
    assert client.list_webhooks(2)[0]["is_active"]
    assert len(client.list_predictions(task_id=6)) == 4
    assert len(client.export_json(1)) == len(recorded("70_"))
    assert loopback.requests[-1].query == {"exportType": ["JSON"]}


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_tasks_come_page_by_page(
    loopback: Any, client: LabelStudioClient, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def page(request: Any, handler: Any) -> None:
        number, size = int(request.query["page"][0]), int(request.query["page_size"][0])
        tasks = [{"id": n} for n in range(count)][(number - 1) * size : number * size]
        if number > 1 and not tasks:
            give(handler, {"detail": "Invalid page."}, 404)
        else:
            give(handler, {"tasks": tasks, "total": count})

    monkeypatch.setattr("integration.label_studio.client.PAGE_SIZE", 2)
    loopback.pages["/api/tasks"] = page
    tasks = list(client.iter_tasks(7, query='{"filters": {}}'))
    assert [task["id"] for task in tasks] == list(range(count))
    assert loopback.requests[0].query["project"] == ["7"]
    assert loopback.requests[0].query["query"] == ['{"filters": {}}']


def give(handler: Any, body: Any, status: int = 200) -> None:
    data = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def test_predictions_are_pushed_in_chunks_and_counted(loopback: Any, client: LabelStudioClient) -> None:
    path = "/api/projects/3/import/predictions"
    loopback.pages[path] = lambda request, handler: give(handler, {"created": len(request.json)}, 201)
    rows = [{"task": n, "result": [], "score": 0.0, "model_version": "v"} for n in range(5)]
    assert client.import_predictions(3, rows, chunk=2) == 5
    assert [request.json for request in loopback.requests] == [rows[:2], rows[2:4], rows[4:]]
    assert client.import_predictions(3, []) == 0


def test_uploads_and_imports(loopback: Any, client: LabelStudioClient, tmp_path: Path) -> None:
    loopback.give("/api/projects/3/import", {"task_ids": [1, 2]}, 201)
    paths = [tmp_path / "a b.png", tmp_path / "ü.png"]
    for path in paths:
        path.write_bytes(b"pixels of " + path.name.encode())
    assert client.upload_files(3, paths) == {"task_ids": [1, 2]}
    assert client.import_tasks(3, [{"data": {"image": "x"}}]) == {"task_ids": [1, 2]}
    upload, tasks = loopback.requests
    assert upload.headers["Content-Type"].startswith("multipart/form-data")
    assert b'filename="a b.png"' in upload.body
    assert "pixels of ü.png".encode() in upload.body
    assert tasks.json == [{"data": {"image": "x"}}]


def test_titles_never_go_alone(loopback: Any, client: LabelStudioClient) -> None:
    backend = recorded("71_")[0]
    loopback.give(f"/api/ml/{backend['id']}", {})
    client.update_backend(backend, title="v2")
    assert loopback.requests[0].method == "PATCH"
    assert loopback.requests[0].json == {"project": 1, "url": backend["url"], "title": "v2"}


def test_webhooks_keep_their_address(loopback: Any, client: LabelStudioClient) -> None:
    webhook = recorded("74_")[0]
    loopback.give(f"/api/webhooks/{webhook['id']}/", {})
    client.update_webhook(webhook, headers={"X-Secret": "s"})
    assert loopback.requests[0].json == {"url": webhook["url"], "headers": {"X-Secret": "s"}}


@pytest.mark.parametrize(
    ("task_ids", "selected"), [(None, {"all": True, "excluded": []}), ([1, 2], {"all": False, "included": [1, 2]})]
)
def test_retrieve_predictions(loopback: Any, client: LabelStudioClient, task_ids: Any, selected: object) -> None:
    loopback.give("/api/dm/actions", {"detail": "Retrieved 2 predictions"})
    client.retrieve_predictions(4, task_ids)
    assert loopback.requests[0].query == {"id": ["retrieve_tasks_predictions"], "project": ["4"]}
    assert loopback.requests[0].json["selectedItems"] == selected


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, {"detail": "legacy token authentication has been disabled for this organization"}, "personal"),
        (401, {"detail": "Invalid token."}, "check the API key"),
        (
            403,
            {"detail": "URL resolves to a reserved network address (block: 127.0.0.0/8)"},
            "ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false",
        ),
        (403, {"detail": "no"}, "access to this project"),
        (404, {"detail": "No Project matches the given query."}, "check the id"),
        (
            400,
            {"detail": "Validation error", "validation_errors": {"title": ["too short"], "x": []}},
            "title: too short",
        ),
        (
            400,
            {"validation_errors": {"non_field_errors": ["Can't connect to ML backend http://x"]}},
            "in a container, localhost",
        ),
        (302, b"", "redirects to"),
        (500, b"<html>", "log of Label Studio"),
    ],
)
def test_refusals_come_with_words_and_fix(
    loopback: Any, client: LabelStudioClient, status: int, body: Any, words: str
) -> None:
    loopback.give("/api/projects/1", body, status)
    with pytest.raises(ClientError, match=words) as caught:
        client.update_project(1, title="x")
    assert caught.value.status == status
    assert f"answered {status}" in str(caught.value)
    assert caught.value.fix in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(("method", "tries"), [("GET", 3), ("PATCH", 3)])
def test_restarting_servers_are_asked_again(loopback: Any, client: LabelStudioClient, method: str, tries: int) -> None:
    def page(request: Any, handler: Any) -> None:
        give(handler, {"id": 1}, 200 if len(loopback.requests) == tries else 503)

    loopback.pages["/api/projects/1"] = page
    answer = client.get_project(1) if method == "GET" else client.update_project(1, title="x")
    assert answer == {"id": 1}
    assert len(loopback.requests) == tries


def test_retries_end(loopback: Any, client: LabelStudioClient) -> None:
    loopback.give("/api/projects/1", {}, 503)
    with pytest.raises(ClientError, match="503"):
        client.get_project(1)
    assert len(loopback.requests) == 3


def test_a_write_that_may_have_happened_is_not_repeated(loopback: Any, client: LabelStudioClient) -> None:
    def hang_up(request: Any, handler: Any) -> None:
        handler.close_connection = True

    loopback.pages["/api/projects/3/import/predictions"] = hang_up
    loopback.pages["/api/projects/3"] = hang_up
    with pytest.raises(ClientError, match="no answer"):
        client.import_predictions(3, [{"task": 1}])
    assert len(loopback.requests) == 1
    with pytest.raises(ClientError, match="no answer"):
        client.get_project(3)
    assert len(loopback.requests) == 4


def test_an_access_token_that_ended_early_is_replaced_once(loopback: Any) -> None:
    loopback.give("/api/token/refresh/", {"access": "head.body.new"})
    loopback.pages["/api/projects/1"] = lambda request, handler: give(
        handler, {"detail": "x"}, 401 if len(loopback.requests) < 3 else 200
    )
    client = LabelStudioClient(loopback.url, "a.b.c")
    client.get_project(1)
    assert [request.path for request in loopback.requests] == ["/api/token/refresh/", "/api/projects/1"] * 2


def test_pages_that_are_not_label_studio(loopback: Any, client: LabelStudioClient) -> None:
    loopback.give("/api/version", b"<html>hello</html>")
    with pytest.raises(ClientError, match=r"instead of JSON.*Label Studio's own"):
        client.version()


def test_nobody_there(free_port: int) -> None:
    client = LabelStudioClient(f"http://127.0.0.1:{free_port}", KEY)
    with pytest.raises(ClientError, match="check that Label Studio runs") as caught:
        client.list_projects()
    assert caught.value.status is None


def test_a_write_that_cannot_have_happened_is_repeated(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("integration.label_studio.client.time.sleep", waits.append)
    with pytest.raises(ClientError):
        LabelStudioClient(f"http://127.0.0.1:{free_port}", KEY).update_project(1, title="x")
    assert len(waits) == 2


def test_refused_personal_tokens_are_client_errors(loopback: Any) -> None:
    loopback.give("/api/token/refresh/", {}, 401)
    with pytest.raises(ClientError, match="create a new one"):
        LabelStudioClient(loopback.url, "a.b.c").list_projects()


def jwt(**claims: Any) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"head.{payload}.signature"


@pytest.mark.parametrize(("key", "personal"), [(KEY, False), (PERSONAL, True), ("", False)])
def test_kinds_of_tokens(key: str, personal: bool) -> None:
    assert is_personal_access_token(key) is personal


def test_legacy_token_and_none(loopback: Any) -> None:
    assert LabelStudioAuth(loopback.url, f" {KEY}\n").headers() == {"Authorization": f"Token {KEY}"}
    assert LabelStudioAuth(loopback.url, "").headers() == {}
    assert loopback.requests == []


def test_an_access_token_is_used_until_shortly_before_its_end(loopback: Any) -> None:
    clock = [1000.0]
    loopback.pages[REFRESH] = lambda request, handler: give_token(handler, len(loopback.requests))
    auth = LabelStudioAuth(loopback.url + "/", PERSONAL, now=lambda: clock[0])
    first = auth.headers()["Authorization"]
    assert first.startswith("Bearer ")
    assert loopback.requests[0].json == {"refresh": PERSONAL}
    clock[0] += 239
    assert auth.headers()["Authorization"] == first
    clock[0] += 2
    assert auth.headers()["Authorization"] != first
    assert len(loopback.requests) == 2
    auth.forget()
    auth.headers()
    assert len(loopback.requests) == 3


def give_token(handler: Any, number: int) -> None:
    data = json.dumps({"access": jwt(iat=5_000_000, exp=5_000_300, number=number)}).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def test_threads_share_one_exchange(loopback: Any) -> None:
    loopback.give(REFRESH, {"access": jwt(iat=0, exp=300)})
    auth = LabelStudioAuth(loopback.url, PERSONAL)
    threads = [threading.Thread(target=auth.headers) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loopback.requests) == 1


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"detail": "Token is invalid or expired"}, 401, "create a new one"),
        (b"<html>", 200, "check that the address"),
        ({"token": "x"}, 200, "check that the address"),
        (["access"], 200, "check that the address"),
    ],
)
def test_refusals_say_what_to_do(loopback: Any, body: Any, status: int, words: str) -> None:
    loopback.give(REFRESH, body, status)
    with pytest.raises(ClientError, match=words) as caught:
        LabelStudioAuth(loopback.url, PERSONAL).headers()
    assert caught.value.status == status
    assert PERSONAL not in str(caught.value)


def test_nobody_there_to_exchange_a_token(free_port: int) -> None:
    with pytest.raises(ClientError, match="check that Label Studio runs") as caught:
        LabelStudioAuth(f"http://127.0.0.1:{free_port}", PERSONAL).headers()
    assert caught.value.status is None


def test_keys_are_never_shown() -> None:
    assert KEY not in repr(LabelStudioAuth("http://ls", KEY))


@pytest.mark.parametrize(
    ("token", "seconds"),
    [
        (jwt(iat=100, exp=400), 300),
        (jwt(iat=100, exp=50), 0),
        (jwt(exp=400), ASSUMED_LIFE_S),
        (jwt(iat="x", exp=1), ASSUMED_LIFE_S),
        ("opaque", ASSUMED_LIFE_S),
        ("a.@@@.c", ASSUMED_LIFE_S),
        ("a.W10.c", ASSUMED_LIFE_S),
    ],
)
def test_life_of_access_tokens(token: str, seconds: float) -> None:
    assert life_s(token) == seconds
