"""Versions of a project: published once, listed with their status, fetched as local checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.checkpoint_metadata import (
    CONFIG_FILE,
    METADATA_FILE,
    WEIGHTS_FILE,
    existing_file,
    file_digest,
    read_metadata,
    verify_weights,
)
from training.registry.code_version import code_version
from training.registry.names import RegistryError, checked_name, is_paper
from training.registry.pointer import Pointer
from training.registry.publication import publish
from training.registry.records import Status, VersionInfo
from training.registry.storage import Storage
from training.registry.transfer import Content, download, files_of

RECORD_FILE = "version.json"
STATUS_FILE = "status.json"


def version_folder(project: str, version: str) -> str:
    """Where a version lies below the root.

    Raises:
        RegistryError: one of the names could leave its folder.
    """
    return f"{checked_name('project', project)}/versions/{checked_name('version', version)}"


def publish_version(
    storage: Storage, project: str, directory: Path, version: str | None, facts: Mapping[str, Any]
) -> str:
    """Publish a checkpoint directory; returns the version's name. See `Registry.publish`."""
    metadata = read_metadata(directory)
    verify_weights(directory, metadata)
    name = version or str(metadata["version"])
    folder = version_folder(project, name)
    # Only what a checkpoint is: a training's folder may hold its state besides, which is larger than the weights.
    weighty: dict[str, Content] = {path: existing_file(directory / path) for path in (WEIGHTS_FILE, CONFIG_FILE)}
    weighty[METADATA_FILE] = _renamed(metadata, name, directory)
    papers = {path: content for path, content in files_of(directory).items() if is_paper(path)}
    described = {
        "version": name,
        "classes": list(metadata["classes"]),
        "created": metadata.get("created", ""),
        "digest": metadata.get("digest") or file_digest(directory / WEIGHTS_FILE),
        "code": code_version(),
        **facts,
    }
    publish(storage, folder, RECORD_FILE, weighty, described, place=lambda path: f"{folder}/{path}", papers=papers)
    return name


def _exists(storage: Storage, folder: str) -> bool:
    return storage.size(f"{folder}/{RECORD_FILE}") is not None


def _renamed(metadata: dict[str, Any], name: str, directory: Path) -> Content:
    """metadata.json says the name the registry gives: predictions carry it."""
    if metadata["version"] == name:
        return directory / METADATA_FILE
    text = json.dumps(metadata | {"version": name}, indent=2, ensure_ascii=False) + "\n"
    return text.encode()


def read_record(storage: Storage, project: str, version: str) -> dict[str, Any]:
    """The record of a published version.

    Raises:
        RegistryError: there is no such version; the message lists those there are.
    """
    record = storage.read_json(f"{version_folder(project, version)}/{RECORD_FILE}")
    if record is None:
        known = ", ".join(version_names(storage, project)) or "none"
        raise RegistryError(f"project {project} has no version {version!r} in {storage.url}; it has {known}")
    return record


def version_names(storage: Storage, project: str) -> list[str]:
    """Names of published versions, in alphabetical order."""
    return [name for name in folder_names(storage, project) if _exists(storage, version_folder(project, name))]


def folder_names(storage: Storage, project: str) -> list[str]:
    """Names of all version folders, unfinished publications included."""
    return storage.names(f"{checked_name('project', project)}/versions")


def list_versions(storage: Storage, project: str, pointer: Pointer) -> list[VersionInfo]:
    """All published versions, oldest first."""
    found = []
    for name in folder_names(storage, project):
        folder = version_folder(project, name)
        record = storage.read_json(f"{folder}/{RECORD_FILE}")
        if record is not None:
            marked = storage.read_json(f"{folder}/{STATUS_FILE}") or {}
            found.append((str(record["published"]), _info(storage, folder, record, marked, pointer)))
    return [info for _, info in sorted(found, key=lambda pair: (pair[0], pair[1].name))]


def fetch_version(storage: Storage, project: str, version: str, cache: Path) -> Path:
    """A local checkpoint directory of a version. See `Registry.fetch`."""
    record = read_record(storage, project, version)
    folder = version_folder(project, version)
    return download(storage, record["files"], lambda path: f"{folder}/{path}", cache / project / version)


def _info(
    storage: Storage, folder: str, record: dict[str, Any], marked: dict[str, Any], pointer: Pointer
) -> VersionInfo:
    return VersionInfo(
        name=record["version"],
        directory_url=storage.describe(folder),
        classes=tuple(record["classes"]),
        parent=record.get("parent", ""),
        snapshot=record.get("snapshot", ""),
        metrics={**record.get("metrics", {}), **marked.get("metrics", {})},
        created=record["published"],
        digest=record["digest"],
        status=_status(record["version"], marked.get("status", "candidate"), pointer),
        code=record.get("code", ""),
        bytes=sum(int(one["bytes"]) for one in record["files"].values()),
    )


def _status(version: str, marked: Status, pointer: Pointer) -> Status:
    """The pointer knows what served; a mark alone never makes a version a promoted one."""
    if version in pointer.in_service():
        return "promoted"
    if version in pointer.retired:
        return "retired"
    return marked if marked != "promoted" else "candidate"
