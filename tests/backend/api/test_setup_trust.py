"""Anybody may send a /setup: which addresses are believed, and what the others can do (nothing)."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from backend.api.access import untrusted_reason
from backend.api.app import create_app
from backend.predictions.projects import Projects
from backend.queue.job_queue import JobQueue
from backend.settings import Settings
from backend.worker.images import label_studio_of
from backend.worker.maintenance import Pusher, connect
from integration.label_studio.client import ClientError
from tests.support.fake_label_studio import TOKEN
from tests.support.service import finish, predict_body, setup_body, tasks

pytestmark = pytest.mark.service

KEY = "7.1795339022"


@pytest.mark.parametrize(
    ("hostname", "peer", "more", "headers", "is_believed"),
    [
        pytest.param("http://localhost:8080", "127.0.0.1", {}, {}, True, id="both here"),
        pytest.param("http://127.0.0.2:8080", "::1", {}, {}, True, id="any loopback address"),
        pytest.param("http://localhost:8080", "10.0.0.7", {}, {}, False, id="caller elsewhere"),
        pytest.param("http://localhost:8080", "127.0.0.1", {}, {"X-Forwarded-For": "9.9.9.9"}, False, id="proxied"),
        pytest.param("http://169.254.169.254", "127.0.0.1", {}, {}, False, id="metadata service"),
        pytest.param("http://10.0.0.5:8080", "10.0.0.5", {}, {}, False, id="private"),
        pytest.param("https://evil.example", "127.0.0.1", {}, {}, False, id="public"),
        pytest.param("http://localhost.evil.example", "127.0.0.1", {}, {}, False, id="looks local"),
        pytest.param("http://127.0.0.1@evil.example", "127.0.0.1", {}, {}, False, id="user part"),
        pytest.param("file:///etc/passwd", "127.0.0.1", {}, {}, False, id="scheme"),
        pytest.param("http://localhost:x", "127.0.0.1", {}, {}, False, id="no port"),
        pytest.param("http://LS:8080/", "10.0.0.7", {"label_studio_hosts": "a, ls"}, {}, True, id="named host"),
        pytest.param("http://ls:8080", "10.0.0.7", {"label_studio_hosts": "ls:8080"}, {}, True, id="named port"),
        pytest.param("http://ls:22", "10.0.0.7", {"label_studio_hosts": "ls:8080"}, {}, False, id="other port"),
        pytest.param("http://ls:8080", "10.0.0.7", {"label_studio_hosts": "*"}, {}, True, id="all"),
        pytest.param(
            "http://ls", "10.0.0.7", {"basic_auth_user": "a", "basic_auth_password": "b"}, {}, True, id="password"
        ),
        pytest.param("http://x", "10.0.0.7", {"label_studio_url": "http://ls"}, {}, True, id="own address"),
        pytest.param("", "10.0.0.7", {}, {}, True, id="none"),
    ],
)
def test_which_addresses_are_believed(hostname, peer, more, headers, is_believed):
    reason = untrusted_reason(Settings(**more), hostname, peer=peer, headers=headers)
    assert (reason == "") == is_believed
    if "password" in reason:
        assert "LABEL_STUDIO_URL" in reason
        assert "TRANSFINER_LABEL_STUDIO_HOSTS" in reason


@pytest.fixture
def client(settings) -> Any:
    return create_app(settings).test_client()


def set_up(client: Any, hostname: str, *, token: str = TOKEN, peer: str = "203.0.113.9") -> dict[str, Any]:
    body = setup_body(hostname, token, project=KEY)
    answer = client.post("/setup", json=body, environ_base={"REMOTE_ADDR": peer})
    assert answer.status_code == 200, "Label Studio would not show why"
    facts: dict[str, Any] = answer.get_json()
    return facts


def test_an_address_that_is_not_believed_is_told_and_not_used(client, settings, redis):
    facts = set_up(client, "http://169.254.169.254")
    assert "169.254.169.254" in facts["warnings"][-1]
    project = Projects(redis).get(KEY)
    assert label_studio_of(settings, project) == ("", "")
    with pytest.raises(ClientError, match="TRANSFINER_LABEL_STUDIO_HOSTS"):
        connect(settings, project)
    assert "169.254.169.254" in client.get("/status").text


def test_it_does_not_replace_one_that_is(client, settings, redis):
    set_up(client, "http://localhost:8080", peer="127.0.0.1")
    set_up(client, "https://evil.example", token="stolen")
    assert label_studio_of(settings, Projects(redis).get(KEY)) == ("http://localhost:8080", TOKEN)


def test_images_of_that_label_studio_are_not_fetched_and_the_reason_is_told(
    serve, settings, workers, label_studio, redis
):
    """The task names a path on the server that /setup named; that server must not be asked."""
    workers.start()
    set_up(create_app(settings).test_client(), label_studio.url)
    requests_sent = []
    label_studio.server.app.before_request(lambda: requests_sent.append(1))
    body = predict_body([{"id": 1, "data": {"image": "/data/upload/1/a.jpg"}}], project=KEY)
    answer = requests.post(f"{serve(settings)}/predict", json=body, timeout=100).json()
    assert answer["results"] == [[]]
    assert "address is not known" in answer["errors"][0]["error"]
    assert requests_sent == []


def test_late_predictions_wait_until_the_address_is_believed(settings, redis, label_studio, checkpoint):
    app = create_app(settings.model_copy(update={"predict_deadline_s": 0.01}))
    client = app.test_client()
    set_up(client, label_studio.url)
    assert client.post("/predict", json=predict_body(tasks(1), project=KEY)).get_json() == {"results": []}
    queue: JobQueue = app.extensions["transfiner"].queue
    (job_id,) = queue.waiting()
    from backend.queue.job_store import JobOutcome

    prediction = {"result": [], "score": 0.5, "model_version": "fake-1"}
    finish(queue, job_id, JobOutcome(prediction=prediction))
    pusher = Pusher(queue, settings.model_copy(update={"push_retry_s": 0.01}), "me")
    assert pusher.push_ready() == 0
    assert label_studio.predictions == []
    set_up(client, label_studio.url, peer="127.0.0.1")
    pusher.wait_until.clear()
    assert pusher.push_ready() == 1
    assert [row["task"] for row in label_studio.predictions] == [1]
