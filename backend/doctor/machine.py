"""What `transfiner doctor` looks at on this machine: settings, libraries, model, device, queue server, workers, API."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from redis import Redis, RedisError

from backend.errors import ServiceError
from backend.processes.embedded_redis import binary
from backend.queue.recovery import living_workers
from backend.settings import Settings, unknown_variables
from backend.versions.resolve import read_served_model
from model.checkpoints.metadata import WEIGHTS_FILE, file_digest
from model.errors import MissingRequirementError, require_model_libraries

Status = Literal["ok", "warning", "error", "skipped"]
LIBRARIES = ("torch", "torchvision", "flask", "waitress", "rq", "redis")


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        repair: does it, where an API can (`doctor --fix`).
    """

    name: str
    status: Status
    detail: str
    fix: str = ""
    repair: Callable[[], object] | None = None


def local_findings(settings: Settings) -> Iterator[Finding]:
    """Everything that can be seen without Label Studio."""
    yield _python()
    yield from _variables()
    yield _libraries()
    yield _model(settings)
    yield _device(settings)
    yield from _queue(settings)
    yield _api(settings)


def _python() -> Finding:
    return Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")


def _variables() -> Iterator[Finding]:
    for name, close in unknown_variables().items():
        fix = f"Did you mean {close}?" if close else "Unset it."
        yield Finding("settings", "warning", f"Nobody reads the variable {name}.", fix)


def _libraries() -> Finding:
    try:
        require_model_libraries()
    except MissingRequirementError as error:
        return Finding("libraries", "error", str(error), "Run `make setup`.")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    return Finding("libraries", "ok", versions)


def _model(settings: Settings) -> Finding:
    try:
        model = read_served_model(settings.model)
        weights = settings.model / WEIGHTS_FILE
        digest = file_digest(weights)
    except ServiceError as error:
        return Finding("model", "error", error.error, error.hint)
    except OSError as error:
        return Finding("model", "error", f"The weights cannot be read: {error}.", "Import or fetch the model again.")
    if model.digest and digest != model.digest:
        return Finding(
            "model",
            "error",
            f"{weights} is not what {model.version} recorded (sha256 {digest[:12]}...).",
            "The file is damaged or replaced; import or fetch the model again.",
        )
    return Finding("model", "ok", f"{model.version} with {len(model.labels)} classes: {', '.join(model.labels[:8])}")


def _device(settings: Settings) -> Finding:
    try:
        import torch

        from model.predictor import choose_device

        device = choose_device(settings.device)
    except (ImportError, OSError) as error:
        return Finding("device", "skipped", f"torch cannot be imported ({error})")
    except ValueError as error:
        return Finding("device", "error", str(error), "Correct TRANSFINER_DEVICE.")
    if device.type == "cuda":
        return Finding("device", "ok", f"{torch.cuda.get_device_name(device)}, {torch.cuda.device_count()} GPU(s)")
    return Finding("device", "ok", f"CPU with {torch.get_num_threads()} thread(s); a GPU is many times faster")


def _queue(settings: Settings) -> Iterator[Finding]:
    if not settings.redis_url:
        try:
            yield Finding("queue server", "ok", f"`serve` starts its own: {binary().name}")
        except ServiceError as error:
            yield Finding("queue server", "error", error.error, error.hint)
        return
    try:
        with Redis.from_url(settings.redis_url, socket_timeout=3, socket_connect_timeout=3) as connection:
            connection.ping()
            workers = living_workers(connection)
    except RedisError as error:
        fix = "Start it, or correct TRANSFINER_REDIS_URL; empty, `serve` starts an embedded one."
        yield Finding("queue server", "error", f"It does not answer: {type(error).__name__}.", fix)
        return
    yield Finding("queue server", "ok", "It answers.")
    versions = sorted({str(facts.get("version")) for facts in workers.values()})
    if workers:
        yield Finding("workers", "ok", f"{len(workers)} alive, serving {', '.join(versions)}")
    else:
        yield Finding("workers", "warning", "None is alive.", "Start `transfiner worker` or `transfiner serve`.")


def _api(settings: Settings) -> Finding:
    url = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{settings.port}/health"
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            facts = json.load(answer)
    except (OSError, ValueError, urllib.error.URLError):
        return Finding("api", "skipped", f"Nothing of ours answers at {url}; start it with `transfiner serve`.")
    return Finding("api", "ok", f"{facts.get('model_class', 'something')} answers at {url}")
