"""The other endpoints, through the application itself; queue server real, no worker."""

from __future__ import annotations

import json
import logging

import pytest

from backend.api.app import create_app
from backend.predictions.projects import Projects
from backend.processes.embedded_redis import free_port
from backend.queue.keys import TASK
from backend.queue.recovery import Heartbeat
from backend.settings import Settings
from integration.label_studio.notice import is_notice
from tests.support.fake_label_studio import TOKEN
from tests.support.service import CONFIG, predict_body, setup_body, tasks

pytestmark = pytest.mark.service

DEEP = b"[" * 100_000


@pytest.fixture
def client(settings):
    return create_app(settings).test_client()


def with_auth(settings: Settings, **more: str) -> Settings:
    return Settings(**{**settings.model_dump(), "basic_auth_user": "ls", "basic_auth_password": "s3cret:ü", **more})


def test_health_needs_nothing(settings):
    """No queue server, no model: still JSON, still 200."""
    alone = settings.model_copy(
        update={"redis_url": f"redis://127.0.0.1:{free_port()}/0", "model": settings.model / "none"}
    )
    client = create_app(alone).test_client()
    assert client.get("/health").get_json()["status"] == "UP"
    assert client.get("/").get_json()["status"] == "UP"
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert len(answer.get_json()["problems"]) == 2


def test_ready_once_a_worker_lives(client, redis):
    assert "worker" in client.get("/ready").get_json()["problems"][0]
    Heartbeat(redis, "somebody", lost_after_s=60).beat({"version": "fake-1"})
    assert client.get("/ready").status_code == 200


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        pytest.param(CONFIG, "", id="fits"),
        pytest.param("", "empty", id="no config yet"),
        pytest.param("<View><Text name='t' value='$text'/></View>", "", id="text project"),
        pytest.param("<View", "", id="broken XML"),
        pytest.param(CONFIG.replace("gear", "car").replace("leaf", "dog"), "gear", id="other labels"),
    ],
)
def test_setup_never_fails_for_a_label_config_but_keeps_the_reason(client, redis, caplog, config, reason):
    with caplog.at_level(logging.WARNING):
        answer = client.post("/setup", json=setup_body("http://ls:8080/", TOKEN, config=config))
    assert answer.status_code == 200
    version = answer.get_json()["model_version"]
    assert is_notice(version) if config != CONFIG else version == "fake-1"
    project = Projects(redis).get("7.1795339022")
    assert (project.hostname, project.token) == ("http://ls:8080", TOKEN)
    assert bool(project.reason) == (config != CONFIG)
    if config != CONFIG:
        assert reason in project.reason
        assert project.reason in caplog.text
    listed = client.get("/jobs").get_json()["projects"][0]
    assert listed["reason"] == project.reason
    assert TOKEN not in client.get("/jobs").text


@pytest.mark.parametrize(
    ("extra", "output", "warns"),
    [
        ({"score_threshold": 0.7, "kind": "brush"}, {"score_threshold": 0.7, "kind": "brush"}, False),
        ('{"tolerance_px": 2}', {"tolerance_px": 2.0}, False),
        ({"score_thr": 0.5}, {"score_threshold": 0.0}, True),
        ({"score_threshold": 7}, {"score_threshold": 0.0}, True),
        ("{", {"score_threshold": 0.0}, True),
        (None, {"score_threshold": 0.0}, False),
        ([1], {"score_threshold": 0.0}, False),
    ],
)
def test_extra_parameters_change_the_output_or_are_warned_about(client, redis, extra, output, warns):
    body = {**setup_body("http://localhost:8080", TOKEN), "extra_params": extra}
    answer = client.post("/setup", json=body)
    assert answer.status_code == 200
    assert bool(answer.get_json()["warnings"]) == warns
    service = client.application.extensions["transfiner"]
    service.queue.is_stopping = True
    client.post("/predict", json=predict_body(tasks(1), project="7.1795339022"))
    (job_id,) = service.queue.waiting()
    payload = json.loads(redis.hget(TASK + job_id, "payload"))
    assert output.items() <= payload["output"].items()


def test_no_secret_travels_in_a_job(client, redis):
    client.post("/setup", json=setup_body("http://ls:8080", TOKEN))
    service = client.application.extensions["transfiner"]
    service.queue.is_stopping = True
    client.post("/predict", json=predict_body(tasks(1), project="7.1795339022"))
    (job_id,) = service.queue.waiting()
    assert TOKEN not in str(redis.hgetall(TASK + job_id))


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b'{"action": 7}', b"{}", DEEP, b'{"project": "\\ud800"}']
)
@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
def test_nonsense_is_refused_politely(client, path, body):
    answer = client.post(path, data=body, content_type="application/json")
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert set(answer.get_json()) == {"error", "hint", "request_id"}


@pytest.mark.parametrize(
    ("headers", "path", "method", "status"),
    [
        ({}, "/setup", "POST", 401),
        ({}, "/predict", "POST", 401),
        ({}, "/versions", "GET", 401),
        ({}, "/jobs", "GET", 401),
        ({}, "/metrics", "GET", 401),
        ({}, "/nowhere", "GET", 401),
        ({}, "/webhook", "POST", 401),
        ({"X-Transfiner-Secret": "wrong"}, "/webhook", "POST", 401),
        ({"X-Transfiner-Secret": "hook"}, "/webhook", "POST", 200),
        ({"X-Transfiner-Secret": "hook"}, "/setup", "POST", 401),
        ({}, "/health", "GET", 200),
        ({}, "/ready", "GET", 503),
        ({"User-Agent": "heartex/1.23.2"}, "/health", "GET", 401),
        ({"Authorization": "Bearer x"}, "/setup", "POST", 401),
        ({"Authorization": "Bearer token-1"}, "/jobs", "GET", 200),
        ({"Authorization": "Bearer "}, "/jobs", "GET", 401),
        ({"Authorization": "Basic !!!"}, "/setup", "POST", 401),
    ],
)
def test_basic_auth_guards_everything_but_probes(settings, headers, path, method, status):
    client = create_app(with_auth(settings, webhook_secret="hook", api_token="token-1")).test_client()
    body = {"action": "PROJECT_UPDATED", "project": {"id": 1}}
    answer = client.open(path, method=method, headers=headers, json=body if method == "POST" else None)
    assert answer.status_code == status
    if status == 401:
        assert "basic auth" in answer.get_json()["hint"]


def test_the_right_password_opens(settings):
    client = create_app(with_auth(settings)).test_client()
    assert client.get("/versions", auth=("ls", "s3cret:ü")).get_json()["versions"] == ["fake-1"]
    assert client.get("/versions", auth=("ls", "s3cret")).status_code == 401


@pytest.mark.parametrize(("secret", "status"), [("hook", 200), ("other", 401), ("", 401)])
def test_a_webhook_secret_is_demanded_even_without_passwords(settings, secret, status):
    client = create_app(Settings(**{**settings.model_dump(), "webhook_secret": "hook"})).test_client()
    body = {"action": "PROJECT_UPDATED", "project": {"id": 1}}
    answer = client.post("/webhook", json=body, headers={"X-Transfiner-Secret": secret} if secret else {})
    assert answer.status_code == status
    assert client.get("/versions").status_code == 200


def test_webhook_notes_without_a_queue_server(settings):
    """Losing a hint is harmless; making the annotator wait is not."""
    alone = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}/0"})
    body = {"action": "PROJECT_UPDATED", "project": {"id": 1}}
    assert create_app(alone).test_client().post("/webhook", json=body).status_code == 200


def test_an_event_only_says_look_now(client, redis):
    client.post("/setup", json=setup_body("http://ls:8080", TOKEN))
    event = {"action": "TASKS_CREATED", "tasks": [{"id": 5, "project": 7}], "project": {"id": 7}}
    assert client.post("/webhook", json=event).get_json()["status"] == "noted"
    assert Projects(redis).get("7.1795339022").changed_at > 0
    client.post("/setup", json=setup_body("http://ls:8080", TOKEN))
    assert Projects(redis).get("7.1795339022").changed_at > 0


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ({"action": "A_LATER_ONE"}, 200),
        ({"action": "TASKS_CREATED", "project": 5}, 200),
        ({}, 400),
        ({"action": 5}, 400),
        ({"action": "START_TRAINING"}, 400),
        *(({"action": "START_TRAINING", "project": {"id": number}}, 400) for number in ("1", True, -1, 10**18)),
        ({"action": "START_TRAINING", "project": {"id": 7}}, 404),  # nobody has connected it
    ],
)
def test_only_events_that_ask_for_something_must_be_whole(client, event, status):
    assert client.post("/webhook", json=event).status_code == status


def test_a_missing_model_is_said_with_the_fix(settings):
    client = create_app(settings.model_copy(update={"model": settings.model / "none"})).test_client()
    answer = client.post("/setup", json=setup_body("http://ls:8080", TOKEN))
    assert answer.status_code == 503
    assert "TRANSFINER_MODEL" in answer.get_json()["hint"]
    assert "no model" in answer.status


def test_an_internal_error_shows_no_traceback(client, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("backend.api.label_studio.served_model", broken)
    answer = client.get("/versions")
    assert answer.status_code == 500
    assert "secret detail" not in answer.text


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/train", 404), ("/predict", 405)])
def test_unknown_paths_are_json_too(client, path, status):
    answer = client.get(path)
    assert answer.status_code == status
    assert set(answer.get_json()) == {"error", "hint", "request_id"}


def test_too_large_a_body_is_refused(settings):
    client = create_app(settings.model_copy(update={"max_request_mib": 0.01})).test_client()
    assert client.post("/predict", data=b" " * 20_000, content_type="application/json").status_code == 413


def test_jobs_show_state_position_and_estimate(client):
    client.application.extensions["transfiner"].queue.is_stopping = True
    client.post("/predict", json=predict_body(tasks(3)))
    facts = client.get("/jobs").get_json()
    assert facts["waiting"] == {"interactive": 0, "predict": 3}
    assert sorted((row["task"], row["position"], row["state"]) for row in facts["jobs"]) == [
        ("1", 0, "queued"),
        ("2", 1, "queued"),
        ("3", 2, "queued"),
    ]
    assert len(client.get("/jobs?limit=2").get_json()["jobs"]) == 2
    assert client.get("/jobs?state=done").get_json()["jobs"] == []
    assert client.post("/jobs/nothing/retry").status_code == 404


def test_metrics_are_prometheus_text(client, redis):
    Heartbeat(redis, "somebody", lost_after_s=60).beat({"version": "fake-1", "memory_mib": 3})
    client.get("/health")
    text = client.get("/metrics").text
    assert "transfiner_workers 1.0" in text
    assert 'transfiner_queue_depth{lane="predict"} 0.0' in text
    assert 'transfiner_request_seconds_count{endpoint="health",status="200"} 1.0' in text


def test_tasks_of_a_project_whose_labels_are_unknown_get_a_sentence_instead(client, redis):
    """Retrieve Predictions closes without a word: what it leaves behind must say why."""
    config = CONFIG.replace("gear", "car").replace("leaf", "dog")
    version = client.post("/setup", json=setup_body("http://ls:8080/", TOKEN, config=config)).get_json()[
        "model_version"
    ]
    body = {**predict_body(tasks(2), project="7.1795339022"), "label_config": config}
    results = client.post("/predict", json=body).get_json()["results"]
    assert results == [{"result": [], "score": None, "model_version": version}] * 2
    assert "knows none of: car, dog" in version
    assert client.post("/predict", json={**body, "project": ""}).status_code == 422, "no project shows a version"
