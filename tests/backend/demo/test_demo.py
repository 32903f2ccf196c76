"""What can be told about the demo without starting it; tests/e2e starts it."""

from __future__ import annotations

import http.server
import json
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from backend.demo import project as demo_project
from backend.demo.command import check_port, demo
from backend.demo.project import (
    FILES,
    LABELS,
    DemoProject,
    copy_photographs,
    draw_scenes,
    prepare_project,
    scenes_config,
    smart_config,
)
from backend.errors import StartError
from backend.processes.label_studio_server import LabelStudioServer, Login
from backend.settings import SCENES_MODEL, SHIPPED_MODEL
from backend.versions.resolve import read_served_model
from integration.label_studio.label_config import parse_label_config
from training.registry import Registry
from training.synthetic.scenes import CLASSES

pytestmark = pytest.mark.service


def test_a_taken_port_is_told_with_the_option_to_change_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=rf"Port {port} for Label Studio .*--port {port + 1}"):
            check_port("Label Studio", port, "--port")
    check_port("Label Studio", port, "--port")


def test_two_demos_in_one_folder_are_refused(tmp_path: Path) -> None:
    """Both would write the same database."""
    from backend.demo.command import _only_one

    with _only_one(tmp_path), pytest.raises(StartError, match="is running already"), _only_one(tmp_path):
        pass


def test_what_the_demo_writes_is_its_users_alone(tmp_path: Path) -> None:
    """Label Studio's database holds passwords and tokens."""
    from backend.demo.command import _only_one

    folder = tmp_path / "demo"
    with _only_one(folder):
        subprocess.run([sys.executable, "-c", "open('label_studio.sqlite3', 'w')"], cwd=folder, check=True)
    assert stat.S_IMODE((folder / "label_studio.sqlite3").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (tmp_path / "after").touch()
    assert stat.S_IMODE((tmp_path / "after").stat().st_mode) != 0o600


def test_an_impossible_number_of_images_is_wrong_usage(tmp_path: Path) -> None:
    answer = CliRunner().invoke(demo, ["--images", "0", "--folder", str(tmp_path)])
    assert answer.exit_code == 2
    assert "--images" in answer.output


def test_a_missing_label_studio_names_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"make demo.*backend\.bootstrap label-studio"):
        LabelStudioServer(tmp_path, 8080, program=tmp_path / "none").check_installed()


def test_the_login_is_made_once_and_is_nobody_elses(tmp_path: Path) -> None:
    login = Login.of_folder(tmp_path / "new")
    assert Login.of_folder(tmp_path / "new") == login
    assert stat.S_IMODE((tmp_path / "new" / "login.json").stat().st_mode) == 0o600
    assert len(login.password) >= 8
    assert len(bytes.fromhex(login.token)) == 20
    assert Login.of_folder(tmp_path / "other").password != login.password


def test_secrets_are_not_on_label_studios_command_line(tmp_path: Path) -> None:
    server = LabelStudioServer(tmp_path, 8080)
    assert not {server.login.password, server.login.token} & set(server.command)
    assert server.environment["LABEL_STUDIO_USER_TOKEN"] == server.login.token


def test_the_demos_own_processes_are_light(tmp_path: Path) -> None:
    """They live as long as the demo does; only the worker needs torch."""
    question = (
        "import sys, backend.demo.command, backend.demo.project; print({'torch', 'detectron2'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


@pytest.mark.parametrize("labels", [CLASSES, ("traffic light", 'a "b" <c> & d')])
@pytest.mark.parametrize("shape", ["Polygon", "Brush", ""])
def test_the_label_config_takes_every_class(labels: tuple[str, ...], shape: str) -> None:
    config = parse_label_config(smart_config(labels, shape) if shape else scenes_config(labels))
    assert config.supported
    assert config.labels == tuple(labels)
    assert config.match(labels).message is None


def test_photographs_are_in_the_packages_and_some_of_their_labels_are_known(tmp_path: Path) -> None:
    paths = copy_photographs(tmp_path)
    assert len(paths) == len(FILES)
    for path in copy_photographs(tmp_path):
        with Image.open(path) as picture:
            assert min(picture.size) >= 300
    model_labels = set(read_served_model(SHIPPED_MODEL).labels)
    assert set(LABELS) & model_labels
    assert set(LABELS) - model_labels, "the smart tools need something to do"


def test_scenes_are_drawn_once(tmp_path: Path) -> None:
    first = draw_scenes(tmp_path, 2)
    times_ns = [path.stat().st_mtime_ns for path in first]
    assert draw_scenes(tmp_path, 3)[:2] == first
    assert [path.stat().st_mtime_ns for path in first] == times_ns
    assert len(list(tmp_path.iterdir())) == 3


class LabelStudioInMemory:
    """The few calls that preparing makes; predictions come for images that are not listed as broken."""

    def __init__(self, broken: set[str]) -> None:
        self.broken = broken
        self.projects: list[dict[str, Any]] = []
        self.tasks: list[dict[str, Any]] = []
        self.backends: list[dict[str, Any]] = []

    def list_projects(self) -> list[dict[str, Any]]:
        return self.projects

    def create_project(self, **fields: Any) -> dict[str, Any]:
        self.projects.append({"id": 1, **fields})
        return self.projects[-1]

    def iter_tasks(self, project: int) -> Iterator[dict[str, Any]]:
        return iter(self.tasks)

    def upload_files(self, project: int, paths: list[Path]) -> None:
        for path in paths:
            data = {"image": f"/data/upload/{project}/0a1b2c3d-{path.name}"}
            self.tasks.append({"id": len(self.tasks) + 1, "data": data, "annotations": [], "predictions": []})

    def list_backends(self, project: int) -> list[dict[str, Any]]:
        return self.backends

    def create_backend(self, project: int, **fields: Any) -> None:
        self.backends.append(fields)

    def update_backend(self, backend: dict[str, Any], **fields: Any) -> None:
        backend.update(fields)

    def retrieve_predictions(self, project: int, task_ids: list[int]) -> None:
        for task in self.tasks:
            if task["id"] in task_ids and task["data"]["image"].partition("-")[2] not in self.broken:
                task["predictions"].append({"model_version": self.backends[0]["title"]})


@pytest.fixture
def backend_url() -> Iterator[str]:
    """A backend whose task 1 failed."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            row = {"task": "1", "state": "failed", "error": "scene-000.png is damaged"}
            body = json.dumps({"jobs": [row, {"task": "2", "state": "done"}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ready(label_studio: LabelStudioInMemory, backend_url: str, images: list[Path], version: str = "v1") -> list[str]:
    messages: list[str] = []
    demo = DemoProject("Demo", "", scenes_config(CLASSES), version, backend_url, images)
    prepare_project(label_studio, demo, messages.append)  # type: ignore[arg-type]
    return messages


IMAGES = [Path(f"scene-{number:03d}.png") for number in range(10)]


def test_every_image_is_imported_and_predicted_once(backend_url: str) -> None:
    label_studio = LabelStudioInMemory(broken=set())
    ready(label_studio, backend_url, IMAGES[:6])
    ready(label_studio, backend_url, IMAGES)
    assert len(label_studio.projects) == 1
    assert len(label_studio.tasks) == len(IMAGES)
    assert all(len(task["predictions"]) == 1 for task in label_studio.tasks)


def test_a_project_s_own_model_serves_it_until_it_has_learned(tmp_path: Path, backend_url: str) -> None:
    registry, version = str(tmp_path / "registry"), read_served_model(SCENES_MODEL).version
    scenes = DemoProject("S", "", scenes_config(CLASSES), version, backend_url, IMAGES[:1], str(SCENES_MODEL))
    label_studio = LabelStudioInMemory(broken=set())
    prepare_project(label_studio, scenes, lambda _: None, registry)  # type: ignore[arg-type]
    assert Registry(registry).active("1") == label_studio.backends[0]["title"] == version
    Registry(registry).promote("1", Registry(registry).publish("1", SCENES_MODEL, version="p1-round"))
    prepare_project(label_studio, scenes, lambda _: None, registry)  # type: ignore[arg-type]
    assert Registry(registry).active("1") == label_studio.backends[0]["title"] == "p1-round"


def test_a_new_model_renames_the_backend_and_leaves_annotated_tasks_alone(backend_url: str) -> None:
    label_studio = LabelStudioInMemory(broken=set())
    ready(label_studio, backend_url, IMAGES[:2])
    label_studio.tasks[0]["annotations"].append({"id": 1})
    ready(label_studio, backend_url, IMAGES[:2], version="v2")
    assert label_studio.backends == [{"url": backend_url, "title": "v2", "is_interactive": True}]
    assert [len(task["predictions"]) for task in label_studio.tasks] == [1, 2]


def test_one_broken_image_is_reported_and_costs_the_others_nothing(backend_url: str) -> None:
    label_studio = LabelStudioInMemory(broken={"scene-000.png"})
    messages = ready(label_studio, backend_url, IMAGES[:3])
    assert messages[-1] == "1 of 3 images got no prediction: scene-000.png is damaged"
    assert [len(task["predictions"]) for task in label_studio.tasks] == [0, 1, 1]


def test_no_prediction_at_all_is_an_error_with_the_reason(backend_url: str) -> None:
    label_studio = LabelStudioInMemory(broken={"scene-000.png"})
    with pytest.raises(StartError, match=r"1 of 1 images got no prediction: scene-000\.png is damaged"):
        ready(label_studio, backend_url, IMAGES[:1])


def test_predictions_that_never_come_are_an_error(backend_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_project, "LATE_S", -1.0)
    label_studio = LabelStudioInMemory(broken={"scene-000.png", "scene-001.png"})
    with pytest.raises(StartError, match="1 of 3 images got no prediction within"):
        ready(label_studio, backend_url, IMAGES[:3])
