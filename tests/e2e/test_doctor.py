"""`transfiner doctor --fix` against a real Label Studio: two traps are made as people make them, and are gone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from backend.cli.main import cli
from backend.doctor.command import Finding
from backend.settings import Settings
from backend.versions.resolve import read_served_model
from integration.label_studio.client import LabelStudioClient
from tests.support.running_demo import RunningDemo

pytestmark = pytest.mark.e2e
CONFIG = """<View><Image name="image" value="$image"/>
<PolygonLabels name="label" toName="image"><Label value="person"/></PolygonLabels></View>"""


@pytest.fixture
def doctor(demo: RunningDemo, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command; its findings by name."""
    monkeypatch.setenv("LABEL_STUDIO_URL", demo.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", demo.token)
    monkeypatch.setenv("TRANSFINER_PORT", str(demo.backend_port))
    # What is local is not looked at here, and torch takes seconds to import.
    monkeypatch.setattr("backend.doctor.command.local_findings", lambda _: [Finding("local", "skipped", "")])

    def run(*options: str) -> dict[str, dict[str, Any]]:
        result = CliRunner().invoke(cli, ["doctor", "--json", *options])
        assert result.exit_code in (0, 1), result.output
        return {row["name"]: row for row in json.loads(result.stdout)}

    return run


def test_a_renamed_backend_and_a_webhook_left_behind_are_repaired(demo: RunningDemo, doctor: Any) -> None:
    client = demo.client()
    version = read_served_model(Settings().model).version
    project = client.create_project(title="doctor", label_config=CONFIG)["id"]
    left = connect_and_remove(client, project, f"http://localhost:{demo.backend_port}")
    client.create_backend(project, url=f"http://127.0.0.1:{demo.backend_port}", title="my model")
    webhook, title = f"webhook {left} of project {project}", "title of backend 'my model'"

    before = doctor()
    assert (before[webhook]["status"], before[webhook]["fixable"]) == ("warning", True)
    # The demo's own watcher sets the title of a new connection, too, and may be there first.
    assert title not in before or (before[title]["status"], before[title]["fixable"]) == ("warning", True)
    repaired = doctor("--fix")
    assert repaired[webhook]["status"] == "ok"
    assert title not in repaired or repaired[title]["status"] == "ok"

    (backend,) = client.list_backends(project)
    assert backend["title"] == version
    assert client.get_project(project)["model_version"] == version, "tasks can be ordered by uncertainty now"
    active = {hook["id"]: hook["is_active"] for hook in client.list_webhooks(project)}
    assert active.pop(left) is False
    assert list(active.values()) == [True], "the webhook of the connected backend goes on"
    assert not {webhook, title} & doctor().keys()
    client._json("DELETE", f"/api/projects/{project}/")


def connect_and_remove(client: LabelStudioClient, project: int, url: str) -> int:
    """A backend that was connected and removed again: its webhook stays. The webhook's id."""
    backend = client.create_backend(project, url=url, title="before")
    client._json("DELETE", f"/api/ml/{backend['id']}")
    (hook,) = client.list_webhooks(project)
    return int(hook["id"])
