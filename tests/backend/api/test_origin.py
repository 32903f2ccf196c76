"""What a page of another site, open in somebody's browser, can do here: nothing."""

from __future__ import annotations

import re

import pytest
from flask import Response
from flask.testing import FlaskClient

from backend.api.app import create_app
from tests.support.service import setup_body
from tests.support.slow_clients import connections

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "X-OWN")
VALUES = {
    "job_id": "p7-t1-0",
    "project": "7",
    "action": "start",
    "version": "v1",
    "name": "report.json",
    "artifact": "report.json",
}


def routes(client: FlaskClient) -> list[str]:
    """The path of every route, with a value for each variable in it."""
    rules = client.application.url_map.iter_rules()
    return sorted({re.sub(r"<(?:\w+:)?(\w+)>", lambda part: VALUES[part[1]], rule.rule) for rule in rules})


@pytest.fixture
def client(settings):
    return create_app(settings).test_client()


def judge_headers(answer: Response) -> None:
    headers = answer.headers
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    policy = headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} <= set(policy)
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["Cache-Control"]
    assert not [name for name in dict(headers) if name.startswith("Access-Control-")], "no other site may read"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://localhost:81"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
    ],
    ids=str,
)
def test_another_site_changes_nothing_by_any_method_on_any_route(client, redis, headers):
    """Reads answer, since a link may lead here, but the other site cannot read them."""
    client.get("/status")  # makes the secret of the forms
    before = sorted(redis.keys())
    for path in [*routes(client), "/none"]:
        for method in METHODS:
            answer = client.open(path, method=method, json=setup_body("http://evil.example", "t"), headers=headers)
            judge_headers(answer)
            if method in ("GET", "HEAD", "OPTIONS"):
                assert answer.status_code < 500 or path == "/ready", (method, path)
            else:
                assert answer.status_code == 403, (method, path)
                assert "another site" in answer.get_json()["error"]
    assert sorted(redis.keys()) == before


def test_methods_that_no_route_has_are_refused_as_json(client):
    for path in routes(client):
        for method in ("PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "X-OWN"):
            answer = client.open(path, method=method)
            judge_headers(answer)
            assert answer.status_code == 405, (method, path)
            assert set(answer.get_json()) == {"error", "hint", "request_id"}


@pytest.mark.parametrize("origin", ["http://localhost", "https://LOCALHOST", None])
def test_our_own_page_and_programs_are_heard(client, origin):
    headers = {"Sec-Fetch-Site": "same-origin", "Origin": origin} if origin else {}
    assert (
        client.post("/webhook", json={"action": "PROJECT_UPDATED", "project": {"id": 7}}, headers=headers).status_code
        == 200
    )


def test_a_request_without_a_host_comes_from_a_program(settings, serve):
    with connections(serve(settings), 1) as (client,):
        client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert client.recv(4096).split()[1] == b"200"


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_page_can_send_without_asking_is_no_json(client, path, kind):
    assert client.post(path, data=b"{}", content_type=kind).status_code == 415


@pytest.mark.parametrize(
    ("host", "allowed", "status"),
    [
        ("localhost:9090", "", 200),
        ("localhost@evil.example", "", 403),
        ("[::1", "", 403),
        ("localhost, evil.example", "", 403),
        ("127.0.0.1", "", 200),
        ("[::1]:9090", "", 200),
        ("192.168.1.20:9090", "", 200),
        ("api:9090", "", 200),
        ("api.transfiner.svc:9090", "", 200),
        ("evil.example", "", 403),
        ("evil.example:9090", "ml.example", 403),
        ("ml.example:9090", "other.example, ml.example", 200),
        ("ml.example", "*", 200),
        ("127.0.0.1.evil.example", "", 403),
    ],
)
def test_a_name_that_is_not_ours_is_refused_without_a_password(settings, host, allowed, status):
    client = create_app(settings.model_copy(update={"allowed_hosts": allowed})).test_client()
    assert client.get("/health", headers={"Host": host}).status_code == status


def test_a_password_makes_any_name_good(settings):
    """A page that was rebound to our address has no password for its own name."""
    client = create_app(settings.model_copy(update={"api_token": type(settings.api_token)("secret")})).test_client()
    assert client.get("/health", headers={"Host": "ml.example"}).status_code == 200
