"""Snapshots of a project's annotations: published once; pictures that several snapshots share are stored once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from training.registry.storage import RegistryError, Storage, checked_name
from training.registry.transfer import Content, Manifest, download_files, files_of, manifest_of, publish
from training.registry.versions import SnapshotInfo

SNAPSHOT_RECORD_FILE = "snapshot.json"
MANIFEST_FILE = "manifest.json"
_PICTURES = "images/"


def publish_snapshot(storage: Storage, project: str, directory: Path) -> str:
    """Publish a snapshot directory; returns its digest. See `Registry.publish_snapshot`."""
    facts = _read_manifest(directory)
    digest = str(facts["digest"])
    folder = _folder(project, digest)
    if storage.size(f"{folder}/{SNAPSHOT_RECORD_FILE}") is not None:
        return digest  # a digest is its content: there is nothing to compare or to copy
    contents = files_of(directory)
    place = _place(project, folder, manifest_of(contents))
    _upload_missing_pictures(storage, contents, place)
    rest = {name: content for name, content in contents.items() if not name.startswith(_PICTURES)}
    pictures = manifest_of({name: sha256 for name, sha256 in contents.items() if name not in rest})
    described = {"manifest": facts, "images": pictures}
    publish(storage, folder, SNAPSHOT_RECORD_FILE, rest, described, place=place, content_digest=digest)
    return digest


def list_snapshots(storage: Storage, project: str) -> list[SnapshotInfo]:
    """All published snapshots, oldest first."""
    records = {name: _record(storage, project, name) for name in storage.names(_snapshots(project))}
    records_by_time = [
        (record["published"], _info(storage, project, record)) for record in records.values() if record is not None
    ]
    return [info for _, info in sorted(records_by_time, key=lambda pair: (pair[0], pair[1].digest))]


def fetch_snapshot(storage: Storage, project: str, digest: str, cache: Path) -> Path:
    """A local snapshot directory. See `Registry.fetch_snapshot`."""
    record = _published(storage, project, digest)
    manifest: Manifest = record["files"] | record["images"]
    place = _place(project, _folder(project, digest), manifest)
    base = cache / checked_name("project", project)
    return download_files(storage, manifest, place, base / "snapshots" / digest, shared=base / "files")


def snapshot_manifest(storage: Storage, project: str, digest: str) -> dict[str, Any]:
    """The manifest.json of a published snapshot, without fetching the rest."""
    manifest: dict[str, Any] = _published(storage, project, digest)["manifest"]
    return manifest


def _published(storage: Storage, project: str, digest: str) -> dict[str, Any]:
    record = _record(storage, project, digest)
    if record is None:
        known = ", ".join(storage.names(_snapshots(project))) or "none"
        raise RegistryError(f"project {project} has no snapshot {digest!r} in {storage.url}; it has {known}")
    return record


def _record(storage: Storage, project: str, digest: str) -> dict[str, Any] | None:
    return storage.read_json(f"{_folder(project, digest)}/{SNAPSHOT_RECORD_FILE}")


def _snapshots(project: str) -> str:
    return f"{checked_name('project', project)}/snapshots"


def _folder(project: str, digest: str) -> str:
    return f"{_snapshots(project)}/{checked_name('snapshot', digest)}"


def _place(project: str, folder: str, manifest: Manifest) -> Callable[[str], str]:
    """Pictures go by content to one folder of the project, everything else to the snapshot's own."""

    def place(name: str) -> str:
        if not name.startswith(_PICTURES):
            return f"{folder}/{name}"
        return f"{project}/images/{manifest[name]['sha256']}{PurePosixPath(name).suffix}"

    return place


def _upload_missing_pictures(storage: Storage, contents: dict[str, Content], place: Callable[[str], str]) -> None:
    for name, content in contents.items():
        if name.startswith(_PICTURES) and isinstance(content, Path):
            target = place(name)
            if storage.size(target) != content.stat().st_size:
                storage.put(content, target)


def _read_manifest(directory: Path) -> dict[str, Any]:
    file = directory / MANIFEST_FILE
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        checked_name("snapshot", str(manifest["digest"]))
    except FileNotFoundError as error:
        raise RegistryError(f"{directory} is no snapshot: {MANIFEST_FILE} is missing") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise RegistryError(f"{file} is no snapshot's manifest, it needs a digest: {error}") from error
    described: dict[str, Any] = manifest
    return described


def _info(storage: Storage, project: str, record: dict[str, Any]) -> SnapshotInfo:
    manifest = record["manifest"]
    return SnapshotInfo(
        digest=str(manifest["digest"]),
        created=str(manifest.get("created", record["published"])),
        counts=dict(manifest.get("counts", {})),
        newest_annotation_at=str(manifest.get("newest_annotation_at") or ""),
        classes=tuple(manifest.get("classes", ())),
        directory_url=storage.describe(_folder(project, str(manifest["digest"]))),
    )
