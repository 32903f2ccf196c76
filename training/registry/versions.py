"""Versions of a project: published once, listed with their status, fetched as local checkpoints, removed when old."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model.checkpoints.metadata import (
    CONFIG_FILE,
    METADATA_FILE,
    WEIGHTS_FILE,
    existing_file,
    file_digest,
    read_metadata,
    verify_weights,
)
from training.registry.storage import RegistryError, Storage, checked_name, is_artifact
from training.registry.transfer import CLAIM_FILE, Content, download_files, files_of, publish

if TYPE_CHECKING:
    from training.registry.registry import Pointer

VERSION_RECORD_FILE = "version.json"
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
    papers = {path: content for path, content in files_of(directory).items() if is_artifact(path)}
    described = {
        "version": name,
        "classes": list(metadata["classes"]),
        "created": metadata.get("created", ""),
        "digest": metadata.get("digest") or file_digest(directory / WEIGHTS_FILE),
        "code": code_version(),
        **facts,
    }
    publish(
        storage, folder, VERSION_RECORD_FILE, weighty, described, place=lambda path: f"{folder}/{path}", papers=papers
    )
    return name


def _exists(storage: Storage, folder: str) -> bool:
    return storage.size(f"{folder}/{VERSION_RECORD_FILE}") is not None


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
    record = storage.read_json(f"{version_folder(project, version)}/{VERSION_RECORD_FILE}")
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
    versions = []
    for name in folder_names(storage, project):
        folder = version_folder(project, name)
        record = storage.read_json(f"{folder}/{VERSION_RECORD_FILE}")
        if record is not None:
            marked = storage.read_json(f"{folder}/{STATUS_FILE}") or {}
            versions.append((str(record["published"]), _info(storage, folder, record, marked, pointer)))
    return [info for _, info in sorted(versions, key=lambda pair: (pair[0], pair[1].name))]


def fetch_version(storage: Storage, project: str, version: str, cache: Path) -> Path:
    """A local checkpoint directory of a version. See `Registry.fetch`."""
    record = read_record(storage, project, version)
    folder = version_folder(project, version)
    return download_files(storage, record["files"], lambda path: f"{folder}/{path}", cache / project / version)


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
        bytes=sum(int(file["bytes"]) for file in record["files"].values()),
    )


def _status(version: str, marked: Status, pointer: Pointer) -> Status:
    """The pointer knows what served; a mark alone never makes a version a promoted one."""
    if version in pointer.in_service():
        return "promoted"
    if version in pointer.retired:
        return "retired"
    return marked if marked != "promoted" else "candidate"


Status = Literal["candidate", "promoted", "rejected", "retired"]


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One published version.

    Attributes:
        name: also the version in its metadata.json, which Label Studio shows.
        directory_url: where it lies in the registry; `Registry.fetch` makes a local checkpoint of it.
        classes: names, in the order of the head's rows.
        parent: the version it was finetuned from; "" for the first.
        snapshot: digest of the snapshot it was finetuned on; "" for none.
        metrics: fractions in 0..1 such as mask_ap and boundary_ap; those of the gate once it has judged.
        created: ISO time of publication.
        digest: sha256 of the weights.
        status: promoted is what serves or served, retired what a rollback took back.
        code: version of this program that published it, with the commit when there is one.
        bytes: of all its files.
    """

    name: str
    directory_url: str
    classes: tuple[str, ...]
    parent: str
    snapshot: str
    metrics: dict[str, Any]
    created: str
    digest: str
    status: Status
    code: str = ""
    bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One published snapshot.

    Attributes:
        digest: sha256 of its content, its name.
        created: ISO time of its making.
        counts: images, annotations and so on, as its manifest says.
        newest_annotation_at: ISO time of its newest annotation; newer ones are not in it.
        classes: of the label config at that time.
        directory_url: where it lies in the registry.
    """

    digest: str
    created: str
    counts: dict[str, Any]
    newest_annotation_at: str
    classes: tuple[str, ...] = ()
    directory_url: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


# An upload takes minutes; whoever needed a day was killed.
_UNFINISHED_AFTER = timedelta(days=1)


def removable(versions: Sequence[VersionInfo], pointer: Pointer, best: str | None, keep: int) -> list[str]:
    """Names of versions that may go, oldest first.

    Kept are the active one, all a rollback can reach, the best ever, everything those were finetuned from, and the
    newest `keep` besides.
    """
    by_name = {version.name: version for version in versions}
    kept: set[str] = set()
    waiting = [*pointer.in_service(), *([best] if best else [])]
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in kept:
            kept.add(name)
            waiting.append(by_name[name].parent)
    others = [version.name for version in versions if version.name not in kept]
    return others[: max(0, len(others) - keep)]


def unfinished(storage: Storage, project: str, at: datetime | None = None) -> list[str]:
    """Folders of publications begun more than a day ago and never finished."""
    at = at or datetime.now(UTC)
    versions = []
    for name in folder_names(storage, project):
        folder = version_folder(project, name)
        if storage.size(f"{folder}/{VERSION_RECORD_FILE}") is None and _is_old(storage, folder, at):
            versions.append(name)
    return versions


def remove_version(storage: Storage, project: str, version: str) -> None:
    """Take a version out of sight first, so that nobody sees half of it, then remove its files.

    The claim goes last: what an interrupted removal leaves looks like an unfinished publication, and goes next time.
    """
    folder = version_folder(project, version)
    storage.remove(f"{folder}/{VERSION_RECORD_FILE}")
    storage.remove_folder(folder, last=CLAIM_FILE)


def _is_old(storage: Storage, folder: str, at: datetime) -> bool:
    claim = storage.read_json(f"{folder}/{CLAIM_FILE}")
    return claim is not None and datetime.fromisoformat(str(claim["at"])) < at - _UNFINISHED_AFTER


@cache
def code_version() -> str:
    """Version of this program, with the commit where it runs from a checkout: "0.1.0+3f2a91c"."""
    try:
        version = importlib.metadata.version("transfiner-ml-backend")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    commit = _commit(Path(__file__).resolve().parents[2])
    return f"{version}+{commit}" if commit else version


def _commit(checkout: Path) -> str:
    if not (checkout / ".git").exists():
        return ""
    try:
        said = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # no git here: the version says enough
    return said.stdout.strip() if said.returncode == 0 else ""
