"""The registry as the rest of the program uses it.

ROOT/<project>/versions/<version>/   model.safetensors, config.yaml, metadata.json; version.json makes it visible;
                                     status.json, report.json, MODEL_CARD.md and pictures/ may come later
ROOT/<project>/snapshots/<digest>/   a snapshot without its pictures, snapshot.json makes it visible
ROOT/<project>/images/               pictures of all snapshots, by content
ROOT/<project>/ACTIVE                the pointer: the version that serves, those that served, and the retired ones

One JSON file holds the pointer, so that one write changes all of it or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from model.checkpoints.metadata import (
    CONFIG_FILE,
    METADATA_FILE,
    WEIGHTS_FILE,
    existing_file,
    file_digest,
    read_metadata,
    verify_weights,
)
from training.registry.storage import (
    CLAIM_FILE,
    REPORT_FILE,
    Content,
    Manifest,
    RegistryError,
    Storage,
    checked_name,
    download_files,
    exclusively,
    files_of,
    is_artifact,
    manifest_of,
    publish,
    upload_files,
    utc_now,
)
from training.registry.versions import (
    Pointer,
    SnapshotInfo,
    Status,
    VersionInfo,
    code_version,
    parse_pointer,
    removable,
)

_LOCK_FILE, _POINTER_FILE, _STATUS_FILE = ".lock", "ACTIVE", "status.json"
_VERSION_RECORD_FILE, _SNAPSHOT_RECORD_FILE, _MANIFEST_FILE = "version.json", "snapshot.json", "manifest.json"
_PICTURES = "images/"
# An upload takes minutes; one that has not finished after a day was killed.
_UNFINISHED_AFTER = timedelta(days=1)


class Registry:
    """Versions and snapshots of projects below a root, which is a folder or an fsspec URL.

    All methods raise RegistryError when a name is not one, or what it names is not there.
    """

    def __init__(self, root: str | Path) -> None:
        self.storage = Storage(root)
        self.url = self.storage.url

    def projects(self) -> list[str]:
        """Names of projects with something in the registry."""
        return self.storage.names("")

    def publish(
        self,
        project: str,
        directory: Path,
        *,
        version: str | None = None,
        parent: str = "",
        snapshot: str = "",
        metrics: dict[str, Any] | None = None,
    ) -> str:
        """Publish a checkpoint directory for ever; returns its name, by default the version in its metadata.

        A version is its weights, configuration and metadata; card, report.* and pictures/ go with it, other files do
        not. The same content again changes nothing. A version given here is written into the published metadata.json.

        Raises:
            CheckpointError: the directory is no checkpoint, or its weights are not the recorded ones.
            RegistryError: other content is published under that name.
        """
        metadata = read_metadata(directory)
        verify_weights(directory, metadata)
        name = version or str(metadata["version"])
        folder = _version_folder(project, name)
        # Only the checkpoint's files: a training's folder may hold its state as well, which is larger than the weights.
        contents: dict[str, Content] = {path: existing_file(directory / path) for path in (WEIGHTS_FILE, CONFIG_FILE)}
        contents[METADATA_FILE] = directory / METADATA_FILE
        if metadata["version"] != name:  # predictions carry the name that the registry gives
            new_metadata = json.dumps(metadata | {"version": name}, indent=2, ensure_ascii=False) + "\n"
            contents[METADATA_FILE] = new_metadata.encode()
        record_facts = {
            "version": name,
            "classes": list(metadata["classes"]),
            "created": metadata.get("created", ""),
            "digest": metadata.get("digest") or file_digest(directory / WEIGHTS_FILE),
            "code": code_version(),
            "parent": parent,
            "snapshot": snapshot,
            "metrics": metrics or {},
        }
        papers = {path: paper for path, paper in files_of(directory).items() if is_artifact(path)}
        record = f"{folder}/{_VERSION_RECORD_FILE}"
        publish(self.storage, record, contents, record_facts, place=lambda path: f"{folder}/{path}", papers=papers)
        return name

    def versions(self, project: str) -> list[VersionInfo]:
        """All published versions, oldest first."""
        pointer = self.pointer(project)
        infos = [self._version_info(project, name, pointer) for name in self._folder_names(project)]
        return sorted((info for info in infos if info is not None), key=lambda info: (info.created, info.name))

    def version(self, project: str, name: str) -> VersionInfo:
        """One published version."""
        self._version_record(project, name)
        return next(version for version in self.versions(project) if version.name == name)

    def fetch(self, project: str, version: str, cache: Path) -> Path:
        """Copy a version below `cache`, once, comparing every file's sha256; the local checkpoint directory."""
        record, folder = self._version_record(project, version), _version_folder(project, version)
        target = cache / project / version
        return download_files(self.storage, record["files"], lambda path: f"{folder}/{path}", target)

    def pointer(self, project: str) -> Pointer:
        """Read ACTIVE: version, history, retired ones, events."""
        name = f"{checked_name('project', project)}/{_POINTER_FILE}"
        return parse_pointer(self.storage.read_json(name), self.storage.describe(name))

    def active(self, project: str) -> str | None:
        """The version that serves; None before the first promotion."""
        return self.pointer(project).version

    def promote(self, project: str, version: str) -> None:
        """Make a published version the one that serves; the present one can be rolled back to."""
        with self._locked(project):
            self._version_record(project, version)
            self._swap(project, lambda pointer: pointer.promoted(version, utc_now()))

    def roll_back(self, project: str) -> str:
        """Make the previous version serve; returns it. The present one is retired.

        Raises:
            RegistryError: none served before.
        """
        with self._locked(project):
            return str(self._swap(project, lambda pointer: pointer.rolled_back(utc_now())).version)

    def mark(self, project: str, version: str, status: Status, report: dict[str, Any]) -> None:
        """Record the status and report of a version; the report's "metrics" become the version's.

        A version that serves or served stays "promoted": the pointer decides that.
        """
        self._version_record(project, version)
        folder = _version_folder(project, version)
        self.storage.write_json(f"{folder}/{REPORT_FILE}", report)
        decision = {"status": status, "at": utc_now(), "metrics": report.get("metrics", {})}
        self.storage.write_json(f"{folder}/{_STATUS_FILE}", decision)

    def attach(self, project: str, version: str, directory: Path) -> list[str]:
        """Add or replace papers of a version: MODEL_CARD.md, report.*, pictures/*; returns their names.

        Raises:
            RegistryError: the directory holds something else, or the version is not published.
        """
        self._version_record(project, version)
        contents = files_of(directory)
        if strangers := [name for name in contents if not is_artifact(name)]:
            raise RegistryError(
                f"{directory} holds {', '.join(strangers)}; only MODEL_CARD.md, report.* and pictures/ may be added "
                "to a published version"
            )
        folder = _version_folder(project, version)
        upload_files(self.storage, contents, lambda name: f"{folder}/{name}")
        return sorted(contents)

    def paper(self, project: str, version: str, name: str) -> bytes | None:
        """The content of MODEL_CARD.md, report.json or a picture of a version; None if it has none."""
        if not is_artifact(name):
            raise RegistryError(f"{name!r} is no paper of a version; expected MODEL_CARD.md, report.* or pictures/*")
        return self.storage.read(f"{_version_folder(project, version)}/{name}")

    def papers(self, project: str, version: str) -> list[str]:
        """Names of the papers that a version has."""
        folder = _version_folder(project, version)
        pictures = [f"pictures/{name}" for name in self.storage.names(f"{folder}/pictures")]
        return [name for name in [*self.storage.names(folder), *pictures] if is_artifact(name) and name != "pictures"]

    def best_ever(self, project: str) -> str | None:
        """Name of the version with the highest figures, of those that serve or served and were not retired.

        Figures are from the time of its judgement and that time's hold-out, which is good enough to choose a version
        that the gate then measures anew. Without figures: the active one.
        """
        figures = [
            (version.figure, number, version.name)
            for number, version in enumerate(self.versions(project))
            if version.status == "promoted" and version.figure is not None
        ]
        return max(figures)[2] if figures else self.active(project)

    def publish_snapshot(self, project: str, directory: Path) -> str:
        """Publish a snapshot directory (manifest.json names its digest) for ever; returns the digest.

        Pictures that several snapshots share are stored once.
        """
        facts = _read_manifest(directory)
        digest = str(facts["digest"])
        folder = _snapshot_folder(project, digest)
        record = f"{folder}/{_SNAPSHOT_RECORD_FILE}"
        if self.storage.size(record) is not None:
            return digest  # a digest is its content: there is nothing to compare or to copy
        contents = files_of(directory)
        place = _snapshot_place(project, folder, manifest_of(contents))
        pictures = {name: content for name, content in contents.items() if name.startswith(_PICTURES)}
        missing_pictures = {
            name: content
            for name, content in pictures.items()
            if isinstance(content, Path) and self.storage.size(place(name)) != content.stat().st_size
        }
        upload_files(self.storage, missing_pictures, place)
        other_files = {name: content for name, content in contents.items() if name not in pictures}
        record_facts = {"manifest": facts, "images": manifest_of(pictures)}
        publish(self.storage, record, other_files, record_facts, place=place, content_digest=digest)
        return digest

    def snapshots(self, project: str) -> list[SnapshotInfo]:
        """All published snapshots, oldest first."""
        names = self.storage.names(_snapshots(project))
        records = [record for name in names if (record := self._snapshot_record(project, name)) is not None]
        infos = [(record["published"], self._snapshot_info(project, record)) for record in records]
        return [info for _, info in sorted(infos, key=lambda pair: (pair[0], pair[1].digest))]

    def fetch_snapshot(self, project: str, digest: str, cache: Path) -> Path:
        """Copy a snapshot below `cache`, complete and checked, shared pictures once; the local directory."""
        record = self._snapshot_record(project, digest)
        if record is None:
            digests = ", ".join(self.storage.names(_snapshots(project))) or "none"
            raise RegistryError(f"project {project} has no snapshot {digest!r} in {self.url}; it has {digests}")
        manifest: Manifest = record["files"] | record["images"]
        place = _snapshot_place(project, _snapshot_folder(project, digest), manifest)
        base = cache / checked_name("project", project)
        return download_files(self.storage, manifest, place, base / "snapshots" / digest, shared=base / "files")

    def collect_garbage(self, project: str, *, keep: int, dry_run: bool = False) -> list[str]:
        """Remove versions that never served, but the newest `keep`, and publications left unfinished for a day.

        Never the active one, one that a rollback can reach, the best ever, or what those were finetuned from.
        Snapshots stay: they are replayed and judged on.

        Returns:
            The names removed, or with `dry_run` to be removed.
        """
        with self._locked(project):
            removable_names = removable(self.versions(project), self.pointer(project), self.best_ever(project), keep)
            removable_names += self.unfinished(project, datetime.now(UTC))
            for name in () if dry_run else removable_names:
                folder = _version_folder(project, name)
                # The record goes first, so that no reader finds half a version. The claim goes last: an interrupted
                # removal looks like an unfinished publication, and is removed next time.
                self.storage.remove(f"{folder}/{_VERSION_RECORD_FILE}")
                self.storage.remove_folder(folder, last_file=CLAIM_FILE)
        return removable_names

    def unfinished(self, project: str, at: datetime) -> list[str]:
        """Folders of publications that were begun more than a day before `at` and not finished."""
        names = []
        for name in self._folder_names(project):
            folder = _version_folder(project, name)
            claim = self.storage.read_json(f"{folder}/{CLAIM_FILE}")
            is_old = claim is not None and datetime.fromisoformat(str(claim["at"])) < at - _UNFINISHED_AFTER
            if is_old and self.storage.size(f"{folder}/{_VERSION_RECORD_FILE}") is None:
                names.append(name)
        return names

    def _folder_names(self, project: str) -> list[str]:
        """Names of all version folders, unfinished publications included."""
        return self.storage.names(f"{checked_name('project', project)}/versions")

    def _version_record(self, project: str, version: str) -> dict[str, Any]:
        record = self.storage.read_json(f"{_version_folder(project, version)}/{_VERSION_RECORD_FILE}")
        if record is None:
            names = ", ".join(sorted(info.name for info in self.versions(project))) or "none"
            raise RegistryError(f"project {project} has no version {version!r} in {self.url}; it has {names}")
        return record

    def _version_info(self, project: str, name: str, pointer: Pointer) -> VersionInfo | None:
        """Read a version's records; None where the publication is not finished."""
        folder = _version_folder(project, name)
        record = self.storage.read_json(f"{folder}/{_VERSION_RECORD_FILE}")
        if record is None:
            return None
        decision = self.storage.read_json(f"{folder}/{_STATUS_FILE}") or {}
        return VersionInfo(
            name=record["version"],
            directory_url=self.storage.describe(folder),
            classes=tuple(record["classes"]),
            parent=record.get("parent", ""),
            snapshot=record.get("snapshot", ""),
            metrics={**record.get("metrics", {}), **decision.get("metrics", {})},
            created=record["published"],
            digest=record["digest"],
            status=pointer.status_of(record["version"], decision.get("status", "candidate")),
            code=record.get("code", ""),
            bytes=sum(int(file["bytes"]) for file in record["files"].values()),
        )

    def _snapshot_record(self, project: str, digest: str) -> dict[str, Any] | None:
        return self.storage.read_json(f"{_snapshot_folder(project, digest)}/{_SNAPSHOT_RECORD_FILE}")

    def _snapshot_info(self, project: str, record: dict[str, Any]) -> SnapshotInfo:
        manifest = record["manifest"]
        return SnapshotInfo(
            digest=str(manifest["digest"]),
            created=str(manifest.get("created", record["published"])),
            counts=dict(manifest.get("counts", {})),
            newest_annotation_at=str(manifest.get("newest_annotation_at") or ""),
            classes=tuple(manifest.get("classes", ())),
            directory_url=self.storage.describe(_snapshot_folder(project, str(manifest["digest"]))),
        )

    def _swap(self, project: str, change: Callable[[Pointer], Pointer]) -> Pointer:
        old_pointer = self.pointer(project)
        new_pointer = change(old_pointer)
        if new_pointer != old_pointer:
            self.storage.write_json(f"{project}/{_POINTER_FILE}", asdict(new_pointer))
        return new_pointer

    def _locked(self, project: str) -> AbstractContextManager[None]:
        return exclusively(self.storage, f"{checked_name('project', project)}/{_LOCK_FILE}")


def _version_folder(project: str, version: str) -> str:
    return f"{checked_name('project', project)}/versions/{checked_name('version', version)}"


def _snapshots(project: str) -> str:
    return f"{checked_name('project', project)}/snapshots"


def _snapshot_folder(project: str, digest: str) -> str:
    return f"{_snapshots(project)}/{checked_name('snapshot', digest)}"


def _snapshot_place(project: str, folder: str, manifest: Manifest) -> Callable[[str], str]:
    """Make the function from a snapshot's file to its place: pictures by content in the project's folder."""

    def place(name: str) -> str:
        if not name.startswith(_PICTURES):
            return f"{folder}/{name}"
        return f"{project}/images/{manifest[name]['sha256']}{PurePosixPath(name).suffix}"

    return place


def _read_manifest(directory: Path) -> dict[str, Any]:
    file = directory / _MANIFEST_FILE
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        checked_name("snapshot", str(manifest["digest"]))
    except FileNotFoundError as error:
        raise RegistryError(f"{directory} is no snapshot: {_MANIFEST_FILE} is missing") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise RegistryError(f"{file} is no snapshot's manifest, it needs a digest: {error}") from error
    return manifest
