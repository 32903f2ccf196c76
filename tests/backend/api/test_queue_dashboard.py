"""rq-dashboard is shown to those who may see it, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from backend.api.queue_dashboard import check_dashboard, create_dashboard
from backend.cli.main import cli
from backend.errors import StartError
from backend.queue.job_queue import PREDICT_QUEUE, JobQueue, PredictionJob
from tests.support.service import CONFIG

pytestmark = pytest.mark.service

RIGHT = "Basic bGVhZDpzZWNyZXQ="
AUTH = {"basic_auth_user": "lead", "basic_auth_password": "secret"}


@pytest.fixture
def shown(settings, redis) -> Any:
    """Its client, with one waiting task."""
    job = PredictionJob("7.1", {"id": 3, "data": {"image": "x.png"}}, "x.png", CONFIG, "v1")
    JobQueue(redis, settings).submit([job])
    return lambda **more: create_dashboard(type(settings)(**{**settings.model_dump(), **more})).test_client()


def test_the_queue_is_seen(shown):
    queues = shown().get("/0/data/queues.json").get_json()["queues"]
    assert {queue["name"]: queue["count"] for queue in queues} == {PREDICT_QUEUE: 1}
    jobs = shown().get(f"/0/data/jobs/{PREDICT_QUEUE}/queued/8/asc/1.json").get_json()["jobs"]
    assert "predict task 3" in str(jobs)


def test_no_page_shows_the_queue_server_s_password(shown, settings):
    password = settings.redis_url.partition("://:")[2].partition("@")[0]
    assert len(password) > 8
    assert password not in shown().get("/").get_data(as_text=True)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/requeue/{PREDICT_QUEUE}"),
        ("POST", f"/requeue/{PREDICT_QUEUE}"),
        ("POST", f"/queue/{PREDICT_QUEUE}/queued/empty"),
        ("POST", f"/queue/{PREDICT_QUEUE}/compact"),
        ("POST", "/job/some/delete"),
        ("POST", "/job/some/requeue"),
    ],
)
def test_nothing_can_be_changed(shown, redis, settings, method, path):
    assert shown().open(path, method=method).status_code == 403
    assert JobQueue(redis, settings).depth()["predict"] == 1


@pytest.mark.parametrize(
    ("more", "headers", "status"),
    [
        ({}, {}, 200),
        ({}, {"Host": "127.0.0.1:9181"}, 200),
        pytest.param({}, {"Host": "evil.example"}, 403, id="a name that was made to point here"),
        pytest.param(AUTH, {}, 401, id="no password"),
        pytest.param(AUTH, {"Authorization": "Basic bGVhZDp3cm9uZw=="}, 401, id="wrong password"),
        pytest.param(AUTH, {"Authorization": RIGHT, "Host": "queue.example"}, 200, id="right password"),
        pytest.param({"api_token": "t" * 20}, {}, 401, id="no token"),
    ],
)
def test_who_may_see_it(shown, more, headers, status):
    assert shown(**more).get("/0/data/queues.json", headers=headers).status_code == status


def test_without_the_package_one_sentence_says_how_to_get_it(settings, monkeypatch):
    monkeypatch.setattr("backend.api.queue_dashboard.is_installed", lambda name: False)
    with pytest.raises(StartError, match=r"rq-dashboard.*requirements/dashboard.in"):
        check_dashboard(settings, "127.0.0.1")


@pytest.mark.parametrize("command", [["dashboard", "--host", "0.0.0.0"], ["dashboard", "--host", "192.0.2.7"]])
def test_it_does_not_listen_elsewhere_without_a_password(settings, monkeypatch, command):
    monkeypatch.setattr("backend.api.queue_dashboard.is_installed", lambda name: True)
    failed = CliRunner().invoke(cli, [*command, "--redis-url", settings.redis_url])
    assert isinstance(failed.exception, StartError)
    assert "nobody would be asked" in str(failed.exception)
