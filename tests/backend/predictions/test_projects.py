"""What /setup may leave behind: bounded in size, number and time."""

from __future__ import annotations

import pytest

from backend.api.app import create_app
from backend.predictions.projects import LIFETIME_S, Project, Projects
from backend.queue.keys import PROJECT, PROJECTS
from tests.support.service import CONFIG, predict_body, setup_body, tasks

HOST, KEY = "http://127.0.0.1:8080", "7.1795339022"


@pytest.fixture
def client(settings):
    return create_app(settings).test_client()


@pytest.mark.parametrize("key", ["7.1;x", "7.1\n", "7.1 ", "../7", "7/1", "a" * 65, "7\x00"])
def test_odd_keys_are_refused(client, redis, key):
    assert client.post("/setup", json=setup_body(HOST, "t", project=key)).status_code == 400
    assert redis.smembers(PROJECTS) == set()


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": CONFIG + "<!--" + "x" * 2**18 + "-->"},
        {"hostname": HOST + "/" + "x" * 3000},
        {"access_token": "t" * 10_000},
        {"extra_params": {"a": "x" * 20_000}},
        {"extra_params": '{"a": "' + "x" * 20_000 + '"}'},
    ],
)
def test_what_is_too_large_is_refused(client, redis, changes):
    answer = client.post("/setup", json={**setup_body(HOST, "t", project=KEY), **changes})
    assert answer.status_code == 400
    assert next(iter(changes)) in answer.get_json()["error"]
    assert redis.smembers(PROJECTS) == set()


@pytest.mark.parametrize(
    "changes",
    [
        {"label_config": CONFIG + "<!--" + "x" * 2**18 + "-->"},
        {"project": "7.1" + "0" * 70},
        {"project": "7.1\n"},
        {"tasks": [{"id": "x" * 300, "data": {}}]},
    ],
)
def test_what_a_prediction_leaves_in_the_queue_server_is_bounded(client, redis, changes):
    """A label config is kept for days, whoever sent it."""
    answer = client.post("/predict", json={**predict_body(tasks(1)), **changes})
    assert answer.status_code == 400
    assert next(iter(changes)) in answer.get_json()["error"]
    assert list(redis.scan_iter("transfiner:*")) == []


def test_a_label_config_of_lvis_size_is_taken(client):
    labels = "".join(f'<Label value="label number {number}"/>' for number in range(1203))
    config = CONFIG.replace("<Label", labels + "<Label", 1)
    assert client.post("/setup", json=setup_body(HOST, "t", project=KEY, config=config)).status_code == 200


def test_projects_are_so_many_and_no_more(client, redis, monkeypatch):
    monkeypatch.setattr("backend.predictions.projects.MOST_PROJECTS", 2)
    codes = [
        client.post("/setup", json=setup_body(HOST, "t", project=f"{number}.1")).status_code for number in (1, 2, 3, 2)
    ]
    assert codes == [200, 200, 409, 200]


def test_pages_show_the_newest_projects_and_stay_fast(client, redis, monkeypatch):
    monkeypatch.setattr("backend.predictions.projects.MOST_SHOWN", 2)
    for number in (1, 2, 3, 1):
        client.post("/setup", json=setup_body(HOST, "t", project=f"{number}.1"))
    assert [project.id for project in Projects(redis).newest()] == ["1", "3"]
    assert [row["id"] for row in client.get("/learning").get_json()["projects"]] == ["1", "3"]
    page = client.get("/status").text
    assert "Project 3" in page
    assert "Project 2" not in page


def test_a_project_that_is_heard_of_no_more_is_forgotten(redis):
    projects = Projects(redis)
    projects.save(Project(KEY, hostname=HOST))
    assert LIFETIME_S - 5 <= redis.ttl(PROJECT + KEY) <= LIFETIME_S
    redis.delete(PROJECT + KEY)
    projects.touch("7")
    assert projects.all() == []
    assert not redis.exists(PROJECT + KEY, PROJECTS)
