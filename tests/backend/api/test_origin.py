"""What a page of another site, open in somebody's browser, can do here: nothing."""

from __future__ import annotations

import pytest

from backend.api.app import create_app
from tests.support.service import setup_body

ROUTES = ["/setup", "/predict", "/webhook", "/jobs/p7-t1-0/retry", "/jobs/cancel", "/learning/start"]


@pytest.fixture
def client(settings):
    return create_app(settings).test_client()


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_site_changes_nothing(client, path, headers):
    answer = client.post(path, json=setup_body("http://evil.example", "t"), headers=headers)
    assert answer.status_code == 403
    assert "another site" in answer.get_json()["error"]


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_page_can_send_without_asking_is_no_json(client, path, kind):
    assert client.post(path, data=b"{}", content_type=kind).status_code == 415


@pytest.mark.parametrize(
    ("host", "allowed", "status"),
    [
        ("localhost:9090", "", 200),
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


@pytest.mark.parametrize("path", ["/health", "/status", "/setup"])
def test_every_answer_forbids_frames_and_guessing(client, path):
    headers = client.get(path).headers
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
