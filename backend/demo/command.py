"""The `demo` command: the service, a real Label Studio, and projects that are ready to annotate."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from backend.bootstrap.running import Progress
from backend.demo.project import PHOTOGRAPHS_TITLE, SCENES_TITLE
from backend.errors import StartError
from backend.logs import set_up_logs
from backend.processes.label_studio_server import COLD_START_S, ROOT, LabelStudioServer
from backend.processes.running_service import announced
from backend.processes.service_tree import service_children, settings_environment, warn_of_unknown_variables
from backend.processes.supervisor import Child, Supervisor, python_module
from backend.settings import Settings, load_settings

TITLES = {"queue": "queue server", "worker-0": "worker", "api": "backend and Label Studio", "project": "projects"}
PROJECT_S = 1800.0  # the first start outlines every image: seconds each on a busy CPU
LOG_TAIL_LINES = 12


@click.command()
@click.option("--port", default=8080, help="Port of Label Studio.")
@click.option("--backend-port", default=9090, help="Port of the backend.")
@click.option("--images", default=24, type=click.IntRange(1, 1000), help="Scenes to import.")
@click.option("--folder", default=ROOT / "var" / "demo", type=click.Path(path_type=Path), help="Where it is kept.")
@click.option("--model", type=click.Path(path_type=Path), help="Checkpoint directory (TRANSFINER_MODEL).")
@click.option("--device", help="auto, cpu, cuda, cuda:1 ... (TRANSFINER_DEVICE).")
def demo(port: int, backend_port: int, images: int, folder: Path, **options: Any) -> None:
    """Run the service and a Label Studio with projects of photographs and scenes, outlined; Ctrl-C ends all of it.

    Annotations are kept in the folder, so the next start goes on with them.

    \b
    Example: transfiner demo --port 8081 --backend-port 9091
    """
    with _only_one(folder):
        for owner, number, option in (
            ("Label Studio", port, "--port"),
            ("the backend", backend_port, "--backend-port"),
        ):
            check_port(owner, number, option)
        server = LabelStudioServer(folder / "label-studio", port)
        server.check_installed()
        # Every Label Studio numbers its projects from 1: versions of one demo must not serve another's projects.
        folders = {
            "registry": str(folder / "registry"),
            "registry_cache": folder / "cache",
            "learning_folder": folder / "learning",
            "promises_folder": folder / "promises",
        }
        sys.exit(_run(server, _settings(server, backend_port, {**folders, **options}), folder, images))


def check_port(owner: str, port: int, option: str) -> None:
    """Raise StartError when a program listens on `port` of loopback already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StartError(
                f"Port {port} for {owner} cannot be used: {error.strerror}.",
                f"Stop the program that uses it, or choose another: make demo ARGS='{option} {port + 1}'.",
            ) from error


def _settings(server: LabelStudioServer, port: int, options: dict[str, Any]) -> Settings:
    # Children get the key by environment variables; on a command line everybody could see it.
    os.environ["LABEL_STUDIO_URL"], os.environ["LABEL_STUDIO_API_KEY"] = server.url, server.login.token
    settings = load_settings(port=port, **options)
    set_up_logs(settings.model_copy(update={"log_level": "WARNING"}))
    warn_of_unknown_variables()
    return settings


def _run(server: LabelStudioServer, settings: Settings, folder: Path, images: int) -> int:
    logs = folder / "log"
    logs.mkdir(parents=True, exist_ok=True)
    service, settings = service_children(settings)
    label_studio = Child("label-studio", server.command, server.environment, grace_s=5.0)
    # Label Studio starts while the service does; the last part of the service is ready when both are.
    api = service[-1]
    service[-1] = replace(api, ready=lambda: server.is_up() and api.ready(), start_timeout_s=COLD_START_S)
    state = folder / "project.json"
    # A process of its own prepares the projects: Ctrl-C ends it, a failure restarts it once.
    project = Child(
        "project",
        python_module("backend.demo.project", str(folder), str(images)),
        settings_environment(settings),
        ready=state.exists,
        start_timeout_s=PROJECT_S,
        restarts=1,
    )
    children = [_logged(child, logs) for child in (label_studio, *service, project)]
    login = server.login
    address = f"{server.url}/projects/{{}}/data"

    def announce() -> None:
        numbers = json.loads(state.read_text())
        print(f"\nLogin {login.email}, password {login.password}", flush=True)
        print(f"{PHOTOGRAPHS_TITLE}: {address.format(numbers['photographs'])}", flush=True)
        print(f"{SCENES_TITLE}: {address.format(numbers['project'])}", flush=True)
        print(f"Status page: {settings.status_url}", flush=True)
        print("Ctrl-C ends it; your annotations are kept.", flush=True)

    state.unlink(missing_ok=True)
    with announced("demo", settings):
        status = Supervisor(children, when_ready=announce).run()
    if status:
        newest = max(logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
        tail = newest.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        print("\n".join([f"The last lines of {newest} (the others are beside it):", *tail]), file=sys.stderr)
    return status


def _logged(child: Child, folder: Path) -> Child:
    """Redirect a child's output to a log file of its own, and show its progress on the terminal."""
    log = folder / f"{child.name}.log"
    log.write_bytes(b"")
    command = ["/bin/sh", "-c", 'log=$0; exec "$@" >>"$log" 2>&1', str(log), *child.command]
    progress: list[Progress] = []

    def ready() -> bool:
        if child.name not in TITLES:
            return child.ready()
        if not progress:
            progress.append(Progress(TITLES[child.name]))
        is_ready = child.ready()
        lines = log.read_text(errors="replace").strip().splitlines() if child.name == "project" else []
        progress[0].doing = lines[-1] if lines else "starting"
        progress[0].show(closing_word="ready" if is_ready else "")
        return is_ready

    return replace(child, command=command, ready=ready)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Lock the folder, since two Label Studios would corrupt one database; only its user may read its secrets."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    umask = os.umask(0o077)
    with contextlib.ExitStack() as stack, (folder / "lock").open("w") as lock:
        stack.callback(os.umask, umask)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartError(
                f"The demo in {folder} is running already.", "Use it, or end it with Ctrl-C in its terminal."
            ) from error
        yield
