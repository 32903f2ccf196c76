"""`transfiner doctor`: each trap between Label Studio and the service is named with its fix."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from backend.cli.main import cli
from backend.doctor import command as module
from backend.doctor.command import Finding, connection_findings
from backend.settings import Settings
from integration.label_studio.client import ClientError

pytestmark = pytest.mark.service

PAT = "aaaa.bbbb.cccc"
LEGACY = "0123456789abcdef0123456789abcdef01234567"
BACKEND = {
    "id": 1,
    "state": "CO",
    "url": "http://10.0.0.5:9090",
    "error_message": None,
    "title": "fake-1",
    "model_version": "fake-1",
    "project": 4,
}
HOOK = {"id": 3, "project": 4, "url": "http://10.0.0.5:9090/webhook", "headers": {}}


class FakeClient:
    """Answers as the recorded API does."""

    def __init__(self, *, backends: Any = (BACKEND,), hooks: Any = (HOOK,), refuses: str = "") -> None:
        self.backends, self.hooks, self.refuses = list(backends), list(hooks), refuses
        self.changes: list[tuple[int, dict[str, object]]] = []

    def _maybe(self, name: str) -> None:
        if self.refuses == name:
            raise ClientError("refused", status=401, fix="use another key")

    def health(self) -> Any:
        self._maybe("health")

    def version(self) -> Any:
        return {"release": "1.23.2"}

    def whoami(self) -> Any:
        self._maybe("whoami")
        return {"email": "lead@example.org"}

    def list_projects(self) -> list[dict[str, Any]]:
        return [{"id": 4}]

    def list_backends(self, project_id: int) -> list[dict[str, Any]]:
        return self.backends

    def list_webhooks(self, project_id: int | None = None) -> list[dict[str, Any]]:
        return self.hooks

    def update_backend(self, backend: dict[str, Any], **fields: object) -> Any:
        self.changes.append((backend["id"], fields))

    def update_webhook(self, webhook: dict[str, Any], **fields: object) -> Any:
        self.changes.append((webhook["id"], fields))

    def update_project(self, project_id: int, **fields: object) -> Any:
        self.changes.append((project_id, fields))

    def create_webhook(self, project_id: int, url: str, **fields: object) -> Any:
        self.changes.append((project_id, {"url": url, **fields}))


def findings(settings: Settings, client: FakeClient, key: str = PAT, **more: Any) -> Any:
    facts = {"label_studio_url": "http://ls:8080", "label_studio_api_key": key, **more}
    return list(connection_findings(Settings(**{**settings.model_dump(), **facts}), client))


@pytest.fixture(autouse=True)
def ours_answers(monkeypatch):
    monkeypatch.setattr(module, "is_ours", lambda backend: "10.0.0.5" in backend["url"])


@pytest.mark.parametrize(
    ("label", "status", "says"), [("gear", "ok", "knows all"), ("balloon", "warning", "does not know: balloon")]
)
def test_labels_that_the_model_does_not_know_are_named(settings, monkeypatch, label, status, says):
    xml = (
        '<View><Image name="i" value="$image"/><PolygonLabels name="p" toName="i">'
        f'<Label value="{label}"/></PolygonLabels></View>'
    )
    monkeypatch.setattr(FakeClient, "list_projects", lambda self: [{"id": 4, "label_config": xml}])
    rows = [finding for finding in findings(settings, FakeClient()) if finding.name == "labels of project 4"]
    assert [row.status for row in rows] == [status]
    assert says in rows[0].detail


def test_a_healthy_connection_has_no_complaint(settings):
    assert {finding.status for finding in findings(settings, FakeClient())} == {"ok"}


@pytest.mark.parametrize(
    ("client", "more", "status", "says"),
    [
        pytest.param(FakeClient(refuses="health"), {}, "error", "LABEL_STUDIO_URL", id="not reachable"),
        pytest.param(FakeClient(refuses="whoami"), {"key": LEGACY}, "error", "personal access token", id="legacy off"),
        pytest.param(FakeClient(refuses="whoami"), {}, "error", "use another key", id="token revoked"),
        pytest.param(FakeClient(), {"key": ""}, "error", "LABEL_STUDIO_API_KEY", id="no key"),
        pytest.param(FakeClient(backends=[], hooks=[]), {}, "warning", "Connect ours", id="nothing connected"),
        pytest.param(
            FakeClient(backends=[{**BACKEND, "state": "DI"}]), {}, "error", "ML_BLOCK_LOCAL_IP=false", id="blocked"
        ),
        pytest.param(
            FakeClient(backends=[{**BACKEND, "state": "DI", "url": "http://localhost:9"}], hooks=[]),
            {},
            "error",
            "not localhost",
            id="unreachable",
        ),
        pytest.param(
            FakeClient(backends=[{**BACKEND, "model_version": "old"}]), {}, "warning", "TRANSFINER_MODEL", id="version"
        ),
        pytest.param(
            FakeClient(hooks=[HOOK, {**HOOK, "id": 9, "url": "http://old:1/webhook"}]),
            {},
            "warning",
            "Webhooks",
            id="left",
        ),
        pytest.param(
            FakeClient(),
            {"basic_auth_user": "u", "basic_auth_password": "p"},
            "error",
            "WEBHOOK_SECRET",
            id="no secret",
        ),
    ],
)
def test_each_trap_is_named_with_its_fix(settings, client, more, status, says):
    bad = [finding for finding in findings(settings, client, **more) if finding.status != "ok"]
    assert [finding.status for finding in bad] == [status]
    assert says in bad[0].fix


def test_the_title_and_the_webhook_s_secret_are_repaired(settings):
    client = FakeClient(backends=[{**BACKEND, "title": "transfiner"}])
    auth = {"basic_auth_user": "u", "basic_auth_password": "p", "webhook_secret": "hook"}
    for finding in findings(settings, client, **auth):
        if finding.repair:
            finding.repair()
    assert client.changes == [(1, {"title": "fake-1"}), (3, {"headers": {"X-Transfiner-Secret": "hook"}})]


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_webhook_left_behind_is_switched_off_when_it_is_ours(settings, monkeypatch, is_ours):
    """A service of somebody else's may have such an address as well."""
    updates = []
    monkeypatch.setattr(
        module, "is_ours", lambda backend: updates.append(backend["url"]) or (is_ours or ":9090" in backend["url"])
    )
    stray = {"id": 8, "project": 4, "url": "http://10.0.0.5:7/webhook", "headers": {}, "is_active": True}
    client = FakeClient(hooks=[HOOK, stray])
    (finding,) = (f for f in findings(settings, client) if "no connected backend" in f.detail)
    assert "http://10.0.0.5:7" in updates
    if finding.repair:
        finding.repair()
    assert client.changes == ([(8, {"is_active": False})] if is_ours else [])
    client.hooks[1] = {**stray, "is_active": False}
    assert not any("no connected" in f.detail for f in findings(settings, client))


def test_the_command_speaks_json_and_its_exit_code_counts_errors(settings, monkeypatch):
    monkeypatch.setenv("TRANSFINER_MODEL", str(settings.model / "none"))
    monkeypatch.setenv("TRANSFINER_REDIS_URL", settings.redis_url)
    # Importing torch would take seconds and is the models' tests' business.
    monkeypatch.setattr("backend.doctor.command.require_model_libraries", lambda: None)
    monkeypatch.setattr("backend.doctor.command._device", lambda _: Finding("device", "ok", "CPU"))
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert result.exit_code == 1
    assert rows["model"]["status"] == "error"
    assert "TRANSFINER_MODEL" in rows["model"]["fix"]
    assert rows["queue server"]["status"] == "ok"
    assert rows["workers"]["status"] == "warning"
    assert rows["label studio"]["status"] == "skipped"
