"""The page's part about learning and its buttons; what /setup and /versions say after a promotion."""

from __future__ import annotations

import base64
import re

import pytest
from pydantic import SecretStr

from backend.api.app import create_app
from backend.queue.train_queue import BUTTON
from tests.support.service import setup_body

pytestmark = pytest.mark.service

PROJECT = "7"
PAGE = "/learning/7/"


def connect(app):
    client = app.test_client()
    client.post("/setup", json=setup_body("http://ls:8080", "t" * 40))
    return client


@pytest.fixture
def client(learning):
    return connect(create_app(learning))


def token(client, **headers):
    return re.search(r'name="token" value="([0-9a-f]+)"', client.get("/status", **headers).text)[1]


def test_after_a_promotion_setup_and_versions_say_the_version_of_the_project(client, wishes, rounds):
    assert client.get("/versions").get_json()["versions"] == ["base-1"]
    wishes.set(new=1)
    run = rounds.ask()
    body = setup_body("http://ls:8080", "t" * 40)
    assert client.post("/setup", json=body).get_json()["model_version"] == run.candidate
    assert client.get("/versions").get_json()["versions"] == [run.candidate, "base-1"]
    other = setup_body("http://ls:8080", "t" * 40, project="9.1795339022")
    assert client.post("/setup", json=other).get_json()["model_version"] == "base-1", "another project"


def test_the_page_shows_rounds_versions_and_what_is_going_on(client, wishes, rounds, queue):
    wishes.set(new=1)
    promoted = rounds.ask().candidate
    wishes.set(data="poison", promote=False, at="2026-02-01T00:00:00+00:00")
    rejected = rounds.ask()
    queue.note(PROJECT, "a-run", state="running", stage="finetune", trigger=BUTTON)
    queue.note(PROJECT, "a-run", iteration=3, of=12, eta_s=600, curve=[[1, 3.0], [2, 2.0], [3, 1.5]])
    page = client.get("/status").text
    for part in (
        f"{promoted} serves",
        "Round 3",
        "rejected",
        "worse",
        rejected.candidate,
        "50.0",
        "40.0",
        "step 3 of 12; about 10 min left",
        "Cancel training",
        "<polyline",
        "base-1",
    ):
        assert part in page, part
    facts = client.get("/learning").get_json()
    assert facts["projects"][0]["active"] == promoted
    assert "token" not in facts


def test_the_buttons_promote_roll_back_start_and_cancel(client, wishes, rounds, registry, queue):
    wishes.set(new=1)
    promoted = rounds.ask().candidate
    form = {"token": token(client)}
    assert client.post(f"{PAGE}rollback", data=form, headers={"Accept": "text/html"}).status_code == 303
    assert registry.active(PROJECT) == "base-1"
    assert client.post(f"{PAGE}promote", data={**form, "version": promoted}).status_code == 200
    assert registry.active(PROJECT) == promoted
    assert client.post(f"{PAGE}promote", data={**form, "version": "none"}).status_code == 409
    assert client.post(f"{PAGE}start", data=form).status_code == 200
    assert queue.current(PROJECT)["trigger"] == BUTTON
    assert client.post(f"{PAGE}cancel", data=form).status_code == 200
    assert queue.current(PROJECT) == {}
    assert client.post(f"{PAGE}explode", data=form).status_code == 404


@pytest.mark.parametrize(
    ("form", "headers", "address", "status"),
    [
        pytest.param({}, {}, "127.0.0.1", 403, id="no token"),
        pytest.param({"token": "0" * 64}, {}, "127.0.0.1", 403, id="a wrong token"),
        pytest.param(None, {"Sec-Fetch-Site": "cross-site"}, "127.0.0.1", 403, id="a form of another site"),
        pytest.param(None, {}, "10.1.2.3", 403, id="another machine, and no password is set"),
        pytest.param(None, {"X-Forwarded-For": "10.1.2.3"}, "127.0.0.1", 403, id="behind a proxy"),
        pytest.param(None, {"Sec-Fetch-Site": "same-origin"}, "127.0.0.1", 200, id="the page's own form"),
    ],
)
def test_only_our_own_page_may_change_anything(client, form, headers, address, status):
    data = {"token": token(client)} if form is None else form
    answer = client.post(f"{PAGE}start", data=data, headers=headers, environ_base={"REMOTE_ADDR": address})
    assert answer.status_code == status


def test_with_a_password_the_buttons_need_it_from_anywhere(learning):
    with_password = learning.model_copy(
        update={"basic_auth_user": "lead", "basic_auth_password": SecretStr("secret"), "api_token": SecretStr("abc")}
    )
    client = create_app(with_password).test_client()
    headers = {"Authorization": "Basic " + base64.b64encode(b"lead:secret").decode()}
    client.post("/setup", json=setup_body("http://ls:8080", "t" * 40), headers=headers)
    far = {"REMOTE_ADDR": "10.1.2.3"}
    form = {"token": token(client, headers=headers)}
    assert client.post(f"{PAGE}start", data=form, environ_base=far).status_code == 401
    assert client.post(f"{PAGE}start", data={}, headers=headers, environ_base=far).status_code == 403
    assert client.post(f"{PAGE}start", data=form, headers=headers, environ_base=far).status_code == 200
    bearer = {"Authorization": "Bearer abc"}
    assert client.post(f"{PAGE}cancel", headers=bearer, environ_base=far).status_code == 200


def test_papers_of_a_version_are_read_only_from_its_folder(client, wishes, rounds):
    wishes.set(new=1)
    version = rounds.ask().candidate
    assert client.get(f"{PAGE}versions/{version}/report.json").get_json()["promote"] is True
    assert client.get(f"{PAGE}versions/{version}/MODEL_CARD.md").status_code == 404
    assert client.get(f"{PAGE}versions/{version}/metadata.json").status_code == 400


def test_where_learning_is_off_artifacts_say_so(learning):
    answer = connect(create_app(learning.model_copy(update={"registry": ""}))).get(f"{PAGE}versions/v1/report.md")
    assert answer.status_code == 409
    assert "Learning is off" in answer.text
