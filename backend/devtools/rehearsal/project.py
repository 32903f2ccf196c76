"""A real Label Studio with `transfiner serve`, and a project in it: connected, annotated, trained, watched."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from backend.demo.project import UPLOAD_CHUNK, scenes_config
from backend.devtools.rehearsal.annotator import correct, draw_regions, poison_regions
from backend.devtools.rehearsal.plan import Material, Plan, number_of
from backend.doctor.connection import SAMPLING
from backend.errors import ServiceError, StartError
from backend.processes.embedded_redis import free_port
from backend.processes.label_studio_server import COLD_START_S, LabelStudioServer
from backend.processes.parent_death import bound_command
from backend.processes.supervisor import python_module
from backend.processes.waiting import wait_until
from backend.settings import PREFIX
from backend.versions.resolve import ServedModel
from integration.label_studio.client import LabelStudioClient
from integration.label_studio.label_config import fold

Report = Callable[[str], None]
START_S = 900.0
# A busy CPU takes seconds for a picture and minutes for a training.
PATIENCE_S = 3600.0
STOP_S = 150.0
POLL_S = 1.0
# Asking for all tasks with their predictions costs Label Studio as much as a picture costs the model.
POLL_TASKS_S = 10.0


@dataclass(frozen=True)
class RehearsalServers:
    """Where a rehearsal plays.

    Attributes:
        backend_url: of our service; registry: its folder.
    """

    label_studio: LabelStudioServer
    backend_url: str
    registry: Path

    def client(self) -> LabelStudioClient:
        return LabelStudioClient(self.label_studio.url, self.label_studio.login.token, timeout_s=120.0)

    def learning(self, project: int) -> dict[str, Any]:
        """What the status page shows of a project."""
        answer = requests.get(f"{self.backend_url}/learning", timeout=60)
        answer.raise_for_status()
        projects: list[dict[str, Any]] = [entry for entry in answer.json()["projects"] if entry["id"] == str(project)]
        return projects[0]

    def press(self, project: int, button: str, **fields: str) -> None:
        """A button of the status page, with the page's own form token."""
        page = requests.get(f"{self.backend_url}/status", timeout=60).text
        token = re.search(r'name="token" value="([0-9a-f]+)"', page)
        if token is None:
            raise StartError("The status page has no buttons.", "Is learning on (TRANSFINER_REGISTRY)?")
        answer = requests.post(
            f"{self.backend_url}/learning/{project}/{button}", data={"token": token[1], **fields}, timeout=60
        )
        answer.raise_for_status()


@contextlib.contextmanager
def running_program(
    name: str, command: list[str], environment: Mapping[str, str], logs: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program with a log `<name>.log`; SIGTERM, then SIGKILL to its whole group at the end."""
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{name}.log").open("ab") as output:
        process = subprocess.Popen(
            bound_command(command, logs / f".{name}.lock"),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    """Whether an address answers without an error."""
    try:
        return requests.get(url, timeout=3).ok
    except requests.RequestException:
        return False


@contextlib.contextmanager
def running_servers(folder: Path, plan: Plan, options: Mapping[str, str]) -> Iterator[RehearsalServers]:
    """Both servers, ready.

    Args:
        options: further `TRANSFINER_*` variables of the service, without the prefix.

    Raises:
        StartError: Label Studio is not installed, or one of them does not get ready; names its log.
    """
    server = LabelStudioServer(folder / "label-studio", free_port())
    server.check_installed()
    stage = RehearsalServers(server, f"http://127.0.0.1:{free_port()}", folder / "registry")
    logs = folder / "log"
    ours = _environment(stage, folder, plan, options)
    with contextlib.ExitStack() as stack:
        started = stack.enter_context(running_program("label-studio", server.command, server.environment, logs))
        serve = stack.enter_context(running_program("serve", python_module("backend.cli", "serve"), ours, logs))
        wait_until(server.is_up, "Label Studio", COLD_START_S, process=started, log=logs / "label-studio.log")
        ready = f"{stage.backend_url}/ready"
        wait_until(lambda: answers(ready), "transfiner serve", START_S, process=serve, log=logs / "serve.log")
        yield stage


def _environment(stage: RehearsalServers, folder: Path, plan: Plan, options: Mapping[str, str]) -> dict[str, str]:
    ours = {
        "PORT": stage.backend_url.rpartition(":")[2],
        "REGISTRY": str(stage.registry),
        "REGISTRY_CACHE": str(folder / "cache"),
        "LEARNING_FOLDER": str(folder / "learning"),
        # Each look costs Label Studio half a second, and a training has the other core.
        "LEARNING_CHECK_S": "20",
        "HOLDOUT_SHARE": str(plan.holdout_share),
        "TRAIN_PROCESSES": str(plan.processes),
        "FINETUNE_OPTIONS": json.dumps(plan.finetune),
        "GATE_RULES": json.dumps(plan.rules),
        **options,
    }
    known = {f"{PREFIX}{name}": value for name, value in ours.items()}
    token = stage.label_studio.login.token
    return {**known, "LABEL_STUDIO_URL": stage.label_studio.url, "LABEL_STUDIO_API_KEY": token}


@dataclass
class RehearsedProject:
    """A project and what happened in it.

    Attributes:
        material: the pictures, by the number in their names.
        annotated: numbers of the pool's pictures, in the order they were annotated.
    """

    stage: RehearsalServers
    material: Material
    report: Report
    id: int = 0
    annotated: list[int] = field(default_factory=list)

    def set_up(self, title: str, images: Sequence[Path], version: str) -> None:
        """Make the project, import the pool, connect the backend."""
        client = self.stage.client()
        made = client.create_project(
            title=title,
            label_config=scenes_config(self.material.classes),
            sampling=SAMPLING,
            show_collab_predictions=True,
        )
        self.id = int(made["id"])
        for start in range(0, len(images), UPLOAD_CHUNK):
            self.report(f"{title}: importing images ({start} of {len(images)})")
            client.upload_files(self.id, images[start : start + UPLOAD_CHUNK])
        client.create_backend(self.id, url=self.stage.backend_url, title=version)
        client.retrieve_predictions(self.id)

    def is_known_to(self, model: ServedModel) -> bool:
        """Whether the model knows any label of the project; one that knows none predicts nothing."""
        known = {fold(name) for name in model.labels}
        return any(fold(name) in known for name in self.material.classes)

    def await_predictions(self, version: str) -> int:
        """Wait until every task without annotation has a prediction of the version; their number."""
        client = self.stage.client()

        def complete() -> list[int]:
            tasks = [task for task in client.iter_tasks(self.id) if not task.get("annotations")]
            having = sum(
                any(prediction["model_version"] == version for prediction in task.get("predictions") or ())
                for task in tasks
            )
            if having < len(tasks):
                self.report(f"predictions of {version}: {having} of {len(tasks)} tasks")
                return []
            return [having]

        what = f"Predictions of {version} in project {self.id}"
        return wait_until(complete, what, PATIENCE_S, poll_s=POLL_TASKS_S)[0]

    def annotate(self, count: int, *, poison: bool = False) -> dict[str, float]:
        """Take the next tasks as the label stream offers them, and submit; sums of actions and seconds."""
        client = self.stage.client()
        sums: dict[str, float] = {}
        for number in range(count):
            self.report(f"{'poisoning' if poison else 'annotating'} ({number} of {count})")
            task = client.next_task(self.id)
            if task is None:
                raise ServiceError(f"Project {self.id} has no further task after {number} of {count}.")
            picture = number_of(task["data"]["image"])
            self.annotated.append(picture)
            shown = _shown(client.get_task(int(task["id"])), self._version())
            fields, actions = self._work(picture, shown, poison)
            client.create_annotation(int(task["id"]), **fields)
            for name, value in actions.items():
                sums[name] = sums.get(name, 0) + value
        return sums

    def _version(self) -> str:
        return str(self.stage.client().get_project(self.id).get("model_version") or "")

    def _work(
        self, picture: int, shown: dict[str, Any] | None, poison: bool
    ) -> tuple[dict[str, Any], dict[str, float]]:
        scene = self.material.pool(picture)
        height, width = scene.image.shape[:2]
        parent = {"parent_prediction": shown["id"]} if shown else {}
        if poison:
            false = poison_regions(scene.instances, self.material.classes)
            regions = [region for label, mask_hw in false for region in draw_regions(label, mask_hw, width, height)]
            return {"result": regions, "lead_time": 5.0, **parent}, {"poisoned": 1, "seconds": 5.0}
        done = correct(shown["result"] if shown else [], scene.instances)
        fields = {"result": done.result, "lead_time": done.lead_time_s, **parent}
        return fields, {**done.actions, "images": 1, "seconds": done.lead_time_s}

    def train(self) -> dict[str, Any]:
        """Press Start Training in Label Studio and wait for the round's record."""
        client = self.stage.client()
        before = {record["id"] for record in self.stage.learning(self.id)["rounds"]}
        client.start_training(client.list_backends(self.id)[0]["id"])

        def ended() -> dict[str, Any] | None:
            facts = self.stage.learning(self.id)
            now = facts["current"]
            if not now:
                rounds: list[dict[str, Any]] = facts["rounds"]
                return next((r for r in rounds if r["id"] not in before and r["state"] != "running"), None)
            self.report(f"training: {now.get('stage') or 'waiting'} {now.get('iteration') or ''}/{now.get('of') or ''}")
            return None

        return wait_until(ended, f"The round of project {self.id}", PATIENCE_S, poll_s=POLL_S) or {}

    def await_title(self, version: str) -> None:
        """Wait until the backend in Label Studio, and so the project, is called like the version."""
        what = f"The title {version} of project {self.id}"
        wait_until(lambda: self._version() == version, what, PATIENCE_S, poll_s=POLL_S)


def _shown(task: dict[str, Any], version: str) -> dict[str, Any] | None:
    """The prediction that the editor prefills: the newest one of the project's version."""
    predictions = [prediction for prediction in task.get("predictions") or () if prediction["model_version"] == version]
    return max(predictions, key=lambda prediction: int(prediction["id"]), default=None)
