"""A damaged registry: /ready says why, what served last goes on, and no route answers with a bare 500."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from backend.api.app import create_app
from backend.queue.recovery import Heartbeat
from backend.versions import resolve
from backend.versions.resolve import model_directory, served_model, version_directory
from tests.support.learning_doubles import write_checkpoint
from tests.support.service import predict_body, setup_body, tasks

pytestmark = pytest.mark.service

KEY = "7.1795339022"
ROUTES = (
    "/learning",
    "/learning/7/versions/v1/report.json",
    "/learning/7/versions/v1/MODEL_CARD.md",
    "/status",
    "/versions",
)


def unreadable(root: Path) -> None:
    (root / "7" / "ACTIVE").write_bytes(b"\xff\x00{")


def a_folder(root: Path) -> None:
    (root / "7" / "ACTIVE").unlink()
    (root / "7" / "ACTIVE").mkdir()


def a_file(root: Path) -> None:
    shutil.rmtree(root)
    root.write_text("what was the registry")


@pytest.fixture
def promoted(learning, registry, tmp_path):
    """Version v1 serves project 7 and lies in the cache."""
    registry.publish("7", write_checkpoint(tmp_path / "v1", "v1", "weights"))
    registry.promote("7", "v1")
    assert model_directory(learning, KEY).name == "v1"
    return learning


@pytest.mark.parametrize("is_restarted", [False, True], ids=["the same process", "a new process"])
@pytest.mark.parametrize("damage", [unreadable, a_folder, a_file])
def test_what_served_last_goes_on(promoted, redis, monkeypatch, damage, is_restarted):
    Heartbeat(redis, "somebody", lost_after_s=60).beat({"version": "v1"})
    client = create_app(promoted).test_client()
    client.post("/setup", json=setup_body("http://ls:8080", "t" * 40))
    assert client.get("/ready").get_json()["problems"] == []
    damage(Path(promoted.registry))
    if is_restarted:
        for name in ("_pointers", "_directories", "_records", "_problems"):
            monkeypatch.setattr(resolve, name, {})
    ready = client.get("/ready")
    assert ready.status_code == 503
    assert "registry" in ready.get_json()["problems"][0]
    assert promoted.registry in ready.get_json()["problems"][0]
    answer = client.post("/setup", json=setup_body("http://ls:8080", "t" * 40))
    assert (answer.status_code, answer.get_json()["model_version"]) == (200, "v1")
    assert served_model(promoted, KEY).version == "v1"
    assert model_directory(promoted, KEY).name == "v1"
    directory = version_directory(promoted, KEY, "v1")
    assert directory is not None
    assert directory.name == "v1"
    service = client.application.extensions["transfiner"]
    service.queue.is_stopping = True
    assert client.post("/predict", json=predict_body(tasks(1), project=KEY)).status_code == 200
    for route in ROUTES:
        answer = client.get(route)
        assert answer.status_code != 500, route
        assert answer.status_code == 200 or "registry" in answer.get_json()["error"] or answer.status_code == 404


def test_a_registry_that_is_mended_is_read_again(promoted, redis):
    client = create_app(promoted).test_client()
    client.post("/setup", json=setup_body("http://ls:8080", "t" * 40))
    pointer = Path(promoted.registry) / "7" / "ACTIVE"
    content = pointer.read_bytes()
    unreadable(Path(promoted.registry))
    assert any("registry" in problem for problem in client.get("/ready").get_json()["problems"])
    pointer.write_bytes(content)
    assert not any("registry" in problem for problem in client.get("/ready").get_json()["problems"])


def test_without_learning_papers_are_no_bare_error(settings, redis):
    client = create_app(settings.model_copy(update={"registry": ""})).test_client()
    assert client.get("/learning/7/versions/v1/report.json").status_code == 409
