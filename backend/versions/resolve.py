"""Find the checkpoint that serves a project: its ACTIVE version of the registry, else the model of the settings.

The API and the workers both use this module, so that they agree. No torch. Versions never change, so a cached one stays
valid; only the pointer is read again. Where nothing can be predicted, `project_notice` says why.

An operator's TRANSFINER_PROJECT_MODELS wins over the version that learning promoted, which wins over TRANSFINER_MODEL.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from backend.errors import ModelUnavailableError, ServiceError
from backend.settings import Settings
from integration.label_studio.label_config import parse_label_config
from integration.label_studio.notice import notice, unknown_labels
from model.checkpoints.metadata import METADATA_FILE
from model.files import write_text

if TYPE_CHECKING:
    from training.registry import Registry

log = logging.getLogger(__name__)
# The pointer in a bucket is cached this long, in s; one in a folder is read each time.
REMOTE_TTL_S = 3.0

_pointers: dict[tuple[str, str], tuple[float, str | None]] = {}
_directories: dict[tuple[str, str, str, str], Path] = {}
# Records of versions, which never change.
_records: dict[tuple[str, str, str], ServedModel] = {}
# Why the pointer of a project could not be read last time.
_problems: dict[tuple[str, str], str] = {}
_fetching = threading.Lock()


@dataclass(frozen=True)
class ServedModel:
    """Identity of a checkpoint directory.

    Attributes:
        version: the model_version that Label Studio stores.
        node_budget: most nodes of an image to refine when it serves, 0 for all; None: that of its configuration.
    """

    directory: Path
    name: str
    version: str
    labels: tuple[str, ...]
    digest: str
    node_budget: int | None = field(default=None, compare=False)


def node_budget_of(model: ServedModel, setting: int) -> int | None:
    """Node budget for `model.inference.predictor.Predictor`: that of the settings, or for -1 that of the model."""
    return model.node_budget if setting < 0 else setting


def read_served_model(directory: Path) -> ServedModel:
    """Read `metadata.json` of a checkpoint directory."""
    path = directory / "metadata.json"
    hint = "Set TRANSFINER_MODEL to a checkpoint directory (`transfiner models list` shows those there are)."
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        budget = facts.get("served", {}).get("node_budget")
        return ServedModel(
            directory=directory,
            name=str(facts["name"]),
            version=str(facts["version"]),
            labels=tuple(str(label) for label in facts["classes"]),
            digest=str(facts.get("digest", "")),
            node_budget=None if budget is None else int(budget),
        )
    except FileNotFoundError as error:
        raise ModelUnavailableError(f"There is no model in {directory}: metadata.json is missing.", hint) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnavailableError(f"{path} is not the metadata of a checkpoint: {error!r}.", hint) from error


def prompt_version(settings: Settings) -> str:
    """The version of the promptable model that answers interactive requests; "" where none is installed."""
    if not (settings.prompt_model / "metadata.json").is_file():
        return ""
    return read_served_model(settings.prompt_model).version


def registry_of(settings: Settings) -> Registry | None:
    """The registry of the settings, or None where learning is off."""
    if not settings.registry:
        return None
    from training.registry import Registry

    return Registry(settings.registry)


def required_registry(settings: Settings) -> Registry:
    """The registry of the settings. Raises ServiceError where learning is off."""
    registry = registry_of(settings)
    if registry is None:
        raise ServiceError("Learning is off: TRANSFINER_REGISTRY is empty.", "Name a folder or bucket.", status=409)
    return registry


def project_name(project_key: str) -> str:
    """The project's name in the registry: the id of Label Studio's "<id>.<created>"; "" when it has none."""
    name = project_key.partition(".")[0]
    return name if re.fullmatch(r"[0-9]{1,18}", name) else ""


def active_version(settings: Settings, project_key: str) -> str | None:
    """Name of the project's active version; None when none was promoted yet.

    While the registry cannot be read it is the last one that was read (`registry_problems` says so).
    """
    from training.registry import RegistryError

    project = project_name(project_key)
    if not project or not settings.registry:
        return None
    place = (settings.registry, project)
    read_at, version = _pointers.get(place, (0.0, None))
    if "://" in settings.registry and place in _pointers and time.monotonic() - read_at <= REMOTE_TTL_S:
        return version
    try:
        version = required_registry(settings).active(project)
    except RegistryError as error:
        if _problems.get(place) != str(error):
            log.error("the registry cannot be read; project %s is served as before: %s", project, error)
        _problems[place] = str(error)
        version = version if place in _pointers else _read_last_good(settings, project)
    else:
        _problems.pop(place, None)
        if version != _pointers.get(place, (0.0, None))[1]:
            _write_last_good(settings, project, version)
    _pointers[place] = (time.monotonic(), version)
    return version


def registry_problems(settings: Settings, project_keys: Iterable[str]) -> list[str]:
    """Problems of reading these projects' active versions from the registry; [] for none."""
    if settings.registry and "://" not in settings.registry and Path(settings.registry).is_file():
        return [f"The registry {settings.registry} is a file, expected a folder."]
    keys = list(project_keys)
    for key in keys:
        active_version(settings, key)
    problems = {_problems.get((settings.registry, project_name(key)), "") for key in keys} - {""}
    return [f"The registry is damaged: {problem}." for problem in sorted(problems)]


def _last_good_file(settings: Settings, project: str) -> Path:
    """The file with the last active version, beside the fetched versions, for processes that start later."""
    return Path(settings.registry_cache) / project / "LAST_GOOD"


def _read_last_good(settings: Settings, project: str) -> str | None:
    try:
        return _last_good_file(settings, project).read_text(encoding="utf-8") or None
    except (OSError, UnicodeDecodeError):
        return None


def _write_last_good(settings: Settings, project: str, version: str | None) -> None:
    file = _last_good_file(settings, project)
    try:
        write_text(file, version or "")
    except OSError as error:
        log.warning("%s cannot be written: %s", file, error)


def active_directory(settings: Settings, project_key: str) -> Path | None:
    """Local checkpoint directory of the project's active version; None: serve the model of the settings."""
    version = active_version(settings, project_key)
    return None if version is None else _fetch(settings, project_name(project_key), version)


def active_model(settings: Settings, project_key: str) -> ServedModel | None:
    """Describe the project's active version for the API, from its record: no weights are downloaded.

    Label Studio gives /setup 3 s. None: nothing was promoted.
    """
    version = active_version(settings, project_key)
    if version is None:
        return None
    identity = (settings.registry, project_name(project_key), version)
    if identity not in _records:
        try:
            info = required_registry(settings).version(project_name(project_key), version)
        except (OSError, ValueError, LookupError) as error:
            directory = Path(settings.registry_cache) / project_name(project_key) / version
            if (directory / METADATA_FILE).is_file():
                return read_served_model(directory)
            raise _unavailable(settings, project_name(project_key), version, error) from error
        _records[identity] = ServedModel(Path(info.directory_url), version, version, info.classes, info.digest)
    return _records[identity]


def version_directory(settings: Settings, project_key: str, version: str) -> Path | None:
    """Local checkpoint directory of the version that a job names, active or not; None: the project has no such one.

    A promotion between a request and the worker that takes it must not fail the job.
    """
    project, registry = project_name(project_key), registry_of(settings)
    if not project or registry is None or not version:
        return None
    try:
        if all(info.name != version for info in registry.versions(project)):
            return None
    except (OSError, ValueError, LookupError) as error:
        log.error("the registry cannot be read: %s", error)
    return _fetch(settings, project, version)


def _fetch(settings: Settings, project: str, version: str) -> Path:
    """Fetch a version, once a process: the registry compares the digests of all files each time."""
    identity = (settings.registry, str(settings.registry_cache), project, version)
    cached = _directories.get(identity)
    if cached is not None and (cached / METADATA_FILE).is_file():
        return cached
    try:
        with _fetching:
            directory = required_registry(settings).fetch(project, version, settings.registry_cache)
    except (OSError, ValueError, LookupError) as error:
        # Complete, since only `fetch` writes there: it names the folder when all files are in it.
        if ((local := Path(settings.registry_cache) / project / version) / METADATA_FILE).is_file():
            return local
        raise _unavailable(settings, project, version, error) from error
    _directories[identity] = directory
    return directory


def _unavailable(settings: Settings, project: str, version: str, error: Exception) -> ModelUnavailableError:
    return ModelUnavailableError(
        f"Version {version!r} of project {project} cannot be had from {settings.registry}: {error}",
        "Check TRANSFINER_REGISTRY; `transfiner models list` shows what is there.",
    )


def _pinned_directory(settings: Settings, project_key: str) -> Path | None:
    return settings.models_of_projects().get(project_key.partition(".")[0])


def model_directory(settings: Settings, project_key: str) -> Path:
    """The directory of the model that a project is predicted with.

    Args:
        project_key: Label Studio's "<id>.<created>"; "" for clients without a project.
    """
    return _pinned_directory(settings, project_key) or active_directory(settings, project_key) or settings.model


def served_model(settings: Settings, project_key: str) -> ServedModel:
    """Resolve the version for the API without downloading weights: /setup must be answered within 3 s."""
    pinned_directory = _pinned_directory(settings, project_key)
    active = None if pinned_directory else active_model(settings, project_key)
    return active or read_served_model(pinned_directory or settings.model)


SMART = re.compile(r"""\ssmart\s*=\s*["']true["']""", re.IGNORECASE)


def project_notice(settings: Settings, label_config: str, model: ServedModel) -> str:
    """Say why nothing is outlined in a project with this label config (XML), and what to do; "" when something is."""
    config = parse_label_config(label_config)
    if config.reason:
        return notice(config.reason, settings.status_url)
    match = config.match(model.labels)
    if not match.message:
        return ""
    has_tools = has_smart_tools(label_config) and bool(prompt_version(settings))
    reason = unknown_labels(model.version, config.labels, has_smart_tools=has_tools)
    return notice(reason, settings.status_url)


def has_smart_tools(label_config: str) -> bool:
    """Whether a label config has a control that sends boxes, clicks or strokes to the backend."""
    return bool(SMART.search(label_config))
