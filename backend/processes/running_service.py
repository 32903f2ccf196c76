"""State files of the demos and services that run on this machine, so that other commands find them.

A file lies in the user's state folder (`XDG_STATE_HOME`, else ~/.local/state), readable by the user alone, because the
address of an embedded queue server holds its password. It is removed when its process ends; one left behind by a kill
is ignored.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from backend.settings import PREFIX, Settings, load_settings, status_url

# Settings that a command takes over from the running service unless they are given.
TAKEN_OVER = ("redis_url", "registry", "registry_cache", "learning_folder", "model", "host", "port")
LABEL_STUDIO = ("label_studio_url", "label_studio_api_key")


@dataclass(frozen=True)
class RunningService:
    """A running demo or service.

    Attributes:
        started_at: the kernel's start time of that process, so that a reused pid is not mistaken for it.
        settings: values of `TAKEN_OVER`, for a demo also those of `LABEL_STUDIO`.
    """

    kind: str
    pid: int
    started_at: str
    settings: Mapping[str, str]

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return _start_time(self.pid) == self.started_at


def state_folder() -> Path:
    """Folder of the state files of this user."""
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(root) / "transfiner"


@contextlib.contextmanager
def announced(kind: str, settings: Settings) -> Iterator[None]:
    """Keep a state file while the service runs; none where the folder cannot be written."""
    names = TAKEN_OVER + (LABEL_STUDIO if kind == "demo" else ())
    values = {name: _plain(getattr(settings, name)) for name in names}
    if values["registry"] and "://" not in values["registry"]:
        values["registry"] = str(Path(values["registry"]).absolute())
    service = RunningService(kind, os.getpid(), _start_time(os.getpid()), values)
    try:
        path = state_folder() / f"{service.pid}.json"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123
            json.dump(asdict(service), file)
    except (OSError, RuntimeError):
        yield
        return
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def running_services() -> list[RunningService]:
    """Demos and services of this user that run now, oldest first; files left behind are removed."""
    services = []
    with contextlib.suppress(OSError, RuntimeError):
        for path in sorted(state_folder().glob("*.json"), key=lambda path: path.stat().st_mtime):
            try:
                service = RunningService(**json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                continue
            if service.is_alive:
                services.append(service)
            else:
                path.unlink(missing_ok=True)
    return services


def load_settings_of_running(**options: Any) -> Settings:
    """Load settings for a command beside a service: options, then environment, then the newest running service.

    Where an option or the environment names a queue server, no running service is used. Standard error says which one
    is.
    """
    settings = load_settings(**options)
    services = running_services()
    if settings.redis_url or not services:
        return settings
    service = services[-1]
    given_names = {name for name, value in options.items() if value is not None}
    given_names |= {name for name in TAKEN_OVER if PREFIX + name.upper() in os.environ}
    if settings.label_studio_url:
        given_names |= set(LABEL_STUDIO)
    values = {name: value for name, value in service.settings.items() if name not in given_names and value != ""}
    note = f"; {len(services) - 1} more run, name another with --redis-url" if len(services) > 1 else ""
    page = status_url(service.settings["host"], int(service.settings["port"]))
    click.echo(f"Uses the {service.kind} that runs here, {page}{note}.", err=True)
    return load_settings(**{**options, **values})


def _plain(value: Any) -> str:
    if isinstance(value, Path):
        return str(value.absolute())
    return str(value.get_secret_value() if hasattr(value, "get_secret_value") else value)


def _start_time(pid: int) -> str:
    """Start time of a process, field 22 of /proc/PID/stat; "" where there is no such file."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
