"""The programs of a rehearsal: a real Label Studio and `transfiner serve`, each with a log, gone when it ends."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from backend.devtools.programs import answers, running_program
from backend.devtools.rehearsal.plan import Plan
from backend.errors import StartError
from backend.processes.embedded_redis import free_port
from backend.processes.label_studio_server import COLD_START_S, LabelStudioServer
from backend.processes.supervisor import python_module
from backend.processes.waiting import wait_until
from backend.settings import PREFIX
from integration.label_studio.client import LabelStudioClient

START_S = 900.0


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
