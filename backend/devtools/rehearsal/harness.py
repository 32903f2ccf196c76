"""The programs of a rehearsal: a real Label Studio and `transfiner serve`, each with a log, gone when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from backend.devtools.rehearsal.plan import Plan
from backend.errors import StartError
from backend.processes.embedded_redis import free_port
from backend.processes.label_studio_server import COLD_START_S, LabelStudioServer
from backend.settings import PREFIX
from integration.label_studio.client import LabelStudioClient

START_S = 900.0
POLL_S = 0.5
STOP_S = 150.0


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
    logs.mkdir(parents=True, exist_ok=True)
    ours = _environment(stage, folder, plan, options)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_program("label-studio", server.command, server.environment, logs))
        command = [sys.executable, "-m", "backend.cli", "serve"]
        serve = stack.enter_context(_program("serve", command, ours, logs))
        _await(lambda: _answers(f"{server.url}/health"), serve, logs / "label-studio.log", COLD_START_S)
        _await(lambda: _answers(f"{stage.backend_url}/ready"), serve, logs / "serve.log", START_S)
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


@contextlib.contextmanager
def _program(
    name: str, command: list[str], environment: Mapping[str, str], logs: Path
) -> Iterator[subprocess.Popen[bytes]]:
    bound = [sys.executable, "-m", "backend.processes.exec_with_parent", str(os.getpid()), str(logs / f".{name}.lock")]
    with (logs / f"{name}.log").open("ab") as output:
        process = subprocess.Popen(
            [*bound, *command],
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


def _await(ready: Any, process: subprocess.Popen[bytes], log: Path, limit_s: float) -> None:
    give_up = time.monotonic() + limit_s
    while not ready():
        if process.poll() is not None or time.monotonic() > give_up:
            raise StartError(f"It did not get ready within {limit_s:.0f} s.", f"The reason is in {log}.")
        time.sleep(POLL_S)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=3).ok
    except requests.RequestException:
        return False
