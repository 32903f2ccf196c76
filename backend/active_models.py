"""Which checkpoint a project is served with: its ACTIVE version of the registry, else the model of the settings.

No torch. Versions never change, so one that lies in the cache is good for ever; only the pointer is read again.
"""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

from backend.errors import ModelUnavailableError
from backend.served_model import ServedModel, read_served_model
from backend.settings import Settings

# A pointer in a bucket is asked for again after this many s; one in a folder at once.
REMOTE_TTL_S = 3.0

_pointers: dict[tuple[str, str], tuple[float, str | None]] = {}
_fetching = threading.Lock()


def registry_of(settings: Settings) -> Any:
    """The registry of the settings, or None where learning is off."""
    if not settings.registry:
        return None
    from training.registry import Registry

    return Registry(settings.registry)


def project_name(project_key: str) -> str:
    """Label Studio's "<id>.<created>" as the registry names the project: its id; "" when it is none."""
    name = project_key.partition(".")[0]
    return name if re.fullmatch(r"[0-9]{1,18}", name) else ""


def active_version(settings: Settings, project_key: str) -> str | None:
    """Name of the project's active version; None when none was promoted yet."""
    project, registry = project_name(project_key), registry_of(settings)
    if not project or registry is None:
        return None
    place = (settings.registry, project)
    read_at, version = _pointers.get(place, (0.0, None))
    if "://" not in settings.registry or time.monotonic() - read_at > REMOTE_TTL_S:
        version = registry.active(project)
        _pointers[place] = (time.monotonic(), version)
    return version


def active_directory(settings: Settings, project_key: str) -> Path | None:
    """Local checkpoint directory of the project's active version; None: serve the model of the settings."""
    version = active_version(settings, project_key)
    return None if version is None else _fetched(settings, project_name(project_key), version)


def model_directory(settings: Settings, project_key: str, version: str) -> Path:
    """Local checkpoint directory of the version that a job asks for, active or not.

    Raises:
        ModelUnavailableError: neither the settings' model nor a version of the project has that name.
    """
    if read_served_model(settings.model).version == version:
        return settings.model
    if not project_name(project_key) or registry_of(settings) is None:
        raise ModelUnavailableError(
            f"The API asked for model version {version!r}; here is {settings.model}, which is another one.",
            "Give API and workers the same TRANSFINER_MODEL and TRANSFINER_REGISTRY, and restart the one behind.",
        )
    return _fetched(settings, project_name(project_key), version)


def served_model(settings: Settings, project_key: str) -> ServedModel:
    """What the project is served with.

    Raises:
        ModelUnavailableError: it is no checkpoint, or the registry does not answer.
    """
    return read_served_model(active_directory(settings, project_key) or settings.model)


def _fetched(settings: Settings, project: str, version: str) -> Path:
    cache = settings.registry_cache
    try:
        with _fetching:
            directory: Path = registry_of(settings).fetch(project, version, cache)
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnavailableError(
            f"Version {version!r} of project {project} cannot be had from {settings.registry}: {error}",
            "Check TRANSFINER_REGISTRY; `transfiner models list --registry ... --project ...` shows what is there.",
        ) from error
    return directory
