"""Legacy tokens, and personal access tokens exchanged at a real (loopback) server."""

from __future__ import annotations

import base64
import json
import threading
from typing import Any

import pytest

from integration.label_studio.auth import ASSUMED_LIFE_S, ClientError, LabelStudioAuth, is_personal_access_token, life_s

pytestmark = pytest.mark.service

REFRESH = "/api/token/refresh/"
LEGACY = "0123456789abcdef0123456789abcdef01234567"
PERSONAL = "aaa.bbb.ccc"


def jwt(**claims: Any) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"head.{payload}.signature"


@pytest.mark.parametrize(("key", "personal"), [(LEGACY, False), (PERSONAL, True), ("", False)])
def test_kinds_of_tokens(key: str, personal: bool) -> None:
    assert is_personal_access_token(key) is personal


def test_legacy_token_and_none(loopback: Any) -> None:
    assert LabelStudioAuth(loopback.url, f" {LEGACY}\n").headers() == {"Authorization": f"Token {LEGACY}"}
    assert LabelStudioAuth(loopback.url, "").headers() == {}
    assert loopback.requests == []


def test_an_access_token_is_used_until_shortly_before_its_end(loopback: Any) -> None:
    clock = [1000.0]
    loopback.pages[REFRESH] = lambda seen, handler: give_token(handler, len(loopback.requests))
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


def test_nobody_there(free_port: int) -> None:
    with pytest.raises(ClientError, match="check that Label Studio runs") as caught:
        LabelStudioAuth(f"http://127.0.0.1:{free_port}", PERSONAL).headers()
    assert caught.value.status is None


def test_keys_are_never_shown() -> None:
    assert LEGACY not in repr(LabelStudioAuth("http://ls", LEGACY))


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
