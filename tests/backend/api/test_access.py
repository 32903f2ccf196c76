"""Who may send what: docs/operate.md's table, line by line, against the application."""

from __future__ import annotations

import re

import pytest
from pydantic import SecretStr

from backend.api.app import create_app
from tests.support.service import ROOT

pytestmark = pytest.mark.service

NAMES = {"job_id": "ID", "project": "ID", "action": "ACTION", "version": "VERSION", "name": "NAME", "artifact": "NAME"}
VALUES = {"ID": "7", "ACTION": "start", "VERSION": "v1", "NAME": "report.json"}
REMOTE = {"REMOTE_ADDR": "10.1.2.3", "HTTP_HOST": "10.1.2.4:9090"}


def documented() -> dict[tuple[str, str], tuple[str, str]]:
    """(method, path) -> who is let in without a password, and with one."""
    rows = re.findall(
        r"^\| (`(?:GET|POST) .*?) \| (.*?) \| (.*?) \|$", (ROOT / "docs" / "operate.md").read_text(), re.MULTILINE
    )
    return {
        (requests.partition(" ")[0].strip("`"), path): (without, with_one)
        for requests, without, with_one in rows
        if requests.startswith("`") and with_one in ("everybody", "password", "password or secret")
        for path in re.findall(r"[` ](/[\w./]*)`", requests)
    }


TABLE = documented()


def sent(client, method, path, *, environ=REMOTE, headers=None):
    """The status of a request whose body is what the route takes."""
    path = re.sub("|".join(VALUES), lambda name: VALUES[name[0]], path)
    takes_form = path.startswith("/learning/") or path.endswith("cancel")
    body = {"data": {}} if takes_form or method == "GET" else {"json": {"tasks": []}}
    return client.open(path, method=method, environ_overrides=environ, headers=headers, **body)


def test_the_table_has_every_route(settings):
    rules = create_app(settings).url_map.iter_rules()
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", lambda part: NAMES[part[1]], rule.rule))
        for rule in rules
        for method in rule.methods & {"GET", "POST", "PUT", "DELETE", "PATCH"}
    }
    assert routes == set(TABLE)


@pytest.mark.parametrize(("method", "path"), TABLE)
def test_without_a_password(settings, method, path):
    client = create_app(settings).test_client()
    callers = TABLE[method, path][0]
    assert callers in ("everybody", "this machine")
    assert (sent(client, method, path).status_code == 403) == (callers == "this machine")
    if callers == "this machine":
        local_program = {"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "localhost:9090"}
        program = {"Authorization": "Bearer anything"}
        assert sent(client, method, path, environ=local_program, headers=program).status_code != 403
        assert "did not come from the status page" in sent(client, method, path, environ=local_program).text
        proxied_program = {**program, "X-Forwarded-For": "10.1.2.3"}
        assert sent(client, method, path, environ=local_program, headers=proxied_program).status_code == 403


@pytest.mark.parametrize(("method", "path"), TABLE)
def test_with_a_password(settings, method, path):
    settings = settings.model_copy(
        update={"api_token": SecretStr("right"), "webhook_secret": SecretStr("secret"), "registry": ""}
    )
    client = create_app(settings).test_client()
    callers = TABLE[method, path][1]
    assert (sent(client, method, path).status_code != 401) == (callers == "everybody")
    assert (sent(client, method, path, headers={"Authorization": "Bearer wrong"}).status_code != 401) == (
        callers == "everybody"
    )
    assert sent(client, method, path, headers={"Authorization": "Bearer right"}).status_code not in (401, 403)
    secret = sent(client, method, path, headers={"X-Transfiner-Secret": "secret"}).status_code
    assert (secret != 401) == (callers in ("everybody", "password or secret"))
