"""The registry as the rest of the program uses it.

ROOT/<project>/versions/<version>/   model.safetensors, config.yaml, metadata.json; version.json makes it visible;
                                     status.json, report.json, MODEL_CARD.md and pictures/ may come later
ROOT/<project>/snapshots/<digest>/   a snapshot without its pictures, snapshot.json makes it visible
ROOT/<project>/images/               pictures of all snapshots, by content
ROOT/<project>/ACTIVE                the pointer: which version serves, which served before, what was taken back

One JSON file holds the pointer, so that one write changes all of it or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from training.registry.storage import REPORT_FILE, RegistryError, Storage, checked_name, exclusively, is_artifact
from training.registry.transfer import (
    Content,
    Manifest,
    download_files,
    files_of,
    manifest_of,
    publish,
    upload_files,
    utc_now,
)
from training.registry.versions import (
    STATUS_FILE,
    SnapshotInfo,
    Status,
    VersionInfo,
    fetch_version,
    list_versions,
    publish_version,
    read_record,
    removable,
    remove_version,
    unfinished,
    version_folder,
)

_LOCK_FILE = ".lock"
SNAPSHOT_RECORD_FILE, MANIFEST_FILE = "snapshot.json", "manifest.json"
_PICTURES = "images/"


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
        facts = {"parent": parent, "snapshot": snapshot, "metrics": metrics or {}}
        return publish_version(self.storage, project, directory, version, facts)

    def versions(self, project: str) -> list[VersionInfo]:
        """All published versions, oldest first."""
        return list_versions(self.storage, project, self.pointer(project))

    def version(self, project: str, name: str) -> VersionInfo:
        """One published version."""
        read_record(self.storage, project, name)
        return next(version for version in self.versions(project) if version.name == name)

    def fetch(self, project: str, version: str, cache: Path) -> Path:
        """A local checkpoint directory below `cache`: complete, every file's sha256 compared, copied once."""
        return fetch_version(self.storage, project, version, cache)

    def pointer(self, project: str) -> Pointer:
        """What ACTIVE says: version, history, retired ones, events."""
        name = f"{checked_name('project', project)}/{POINTER_FILE}"
        return parse_pointer(self.storage.read_json(name), self.storage.describe(name))

    def active(self, project: str) -> str | None:
        """The version that serves; None before the first promotion."""
        return self.pointer(project).version

    def promote(self, project: str, version: str) -> None:
        """Make a published version the one that serves; the present one can be rolled back to."""
        with self._locked(project):
            read_record(self.storage, project, version)
            self._swap(project, lambda pointer: pointer.promoted(version, utc_now()))

    def roll_back(self, project: str) -> str:
        """Make the version serve that served before; returns it. The present one is retired.

        Raises:
            RegistryError: none served before.
        """
        with self._locked(project):
            return str(self._swap(project, lambda pointer: pointer.rolled_back(utc_now())).version)

    def mark(self, project: str, version: str, status: Status, report: dict[str, Any]) -> None:
        """Record what was decided about a version, with the report; its "metrics" become the version's.

        What serves or served stays "promoted" whatever is marked: the pointer decides that.
        """
        read_record(self.storage, project, version)
        folder = version_folder(project, version)
        self.storage.write_json(f"{folder}/{REPORT_FILE}", report)
        marked = {"status": status, "at": utc_now(), "metrics": report.get("metrics", {})}
        self.storage.write_json(f"{folder}/{STATUS_FILE}", marked)

    def attach(self, project: str, version: str, directory: Path) -> list[str]:
        """Add or replace papers of a version: MODEL_CARD.md, report.*, pictures/*; returns their names.

        Raises:
            RegistryError: the directory holds something else, or the version is not published.
        """
        read_record(self.storage, project, version)
        contents = files_of(directory)
        if strangers := [name for name in contents if not is_artifact(name)]:
            raise RegistryError(
                f"{directory} holds {', '.join(strangers)}; only MODEL_CARD.md, report.* and pictures/ may be added "
                "to a published version"
            )
        folder = version_folder(project, version)
        upload_files(self.storage, contents, lambda name: f"{folder}/{name}")
        return sorted(contents)

    def paper(self, project: str, version: str, name: str) -> bytes | None:
        """The content of MODEL_CARD.md, report.json or a picture of a version; None if it has none."""
        if not is_artifact(name):
            raise RegistryError(f"{name!r} is no paper of a version; expected MODEL_CARD.md, report.* or pictures/*")
        return self.storage.read(f"{version_folder(project, version)}/{name}")

    def papers(self, project: str, version: str) -> list[str]:
        """Names of the papers that a version has."""
        folder = version_folder(project, version)
        pictures = [f"pictures/{name}" for name in self.storage.names(f"{folder}/pictures")]
        return [name for name in [*self.storage.names(folder), *pictures] if is_artifact(name) and name != "pictures"]

    def best_ever(self, project: str) -> str | None:
        """Of the versions that serve or served and were not taken back, the one with the highest figures.

        Figures are the sum of mask AP and boundary AP that each had when it was judged, on the hold-out of then:
        good enough to choose whom the gate compares with, who measures anew. Without figures: the active one.
        """
        versions = [version for version in self.versions(project) if version.status == "promoted"]
        rated = [
            (_figure(version), number, version.name)
            for number, version in enumerate(versions)
            if _figure(version) is not None
        ]
        return max(rated)[2] if rated else self.active(project)

    def publish_snapshot(self, project: str, directory: Path) -> str:
        """Publish a snapshot directory (manifest.json names its digest) for ever; returns the digest.

        Pictures that several snapshots share are stored once.
        """
        facts = _read_manifest(directory)
        digest = str(facts["digest"])
        folder = _snapshot_folder(project, digest)
        if self.storage.size(f"{folder}/{SNAPSHOT_RECORD_FILE}") is not None:
            return digest  # a digest is its content: there is nothing to compare or to copy
        contents = files_of(directory)
        place = _snapshot_place(project, folder, manifest_of(contents))
        pictures = {name: content for name, content in contents.items() if name.startswith(_PICTURES)}
        self._upload_missing(pictures, place)
        rest = {name: content for name, content in contents.items() if name not in pictures}
        described = {"manifest": facts, "images": manifest_of(pictures)}
        publish(self.storage, folder, SNAPSHOT_RECORD_FILE, rest, described, place=place, content_digest=digest)
        return digest

    def snapshots(self, project: str) -> list[SnapshotInfo]:
        """All published snapshots, oldest first."""
        names = self.storage.names(_snapshots(project))
        records = [record for name in names if (record := self._snapshot_record(project, name)) is not None]
        infos = [(record["published"], self._snapshot_info(project, record)) for record in records]
        return [info for _, info in sorted(infos, key=lambda pair: (pair[0], pair[1].digest))]

    def fetch_snapshot(self, project: str, digest: str, cache: Path) -> Path:
        """A local snapshot directory below `cache`, complete and checked; pictures it shares are copied once."""
        record = self._snapshot_record(project, digest)
        if record is None:
            known = ", ".join(self.storage.names(_snapshots(project))) or "none"
            raise RegistryError(f"project {project} has no snapshot {digest!r} in {self.url}; it has {known}")
        manifest: Manifest = record["files"] | record["images"]
        place = _snapshot_place(project, _snapshot_folder(project, digest), manifest)
        base = cache / checked_name("project", project)
        return download_files(self.storage, manifest, place, base / "snapshots" / digest, shared=base / "files")

    def collect_garbage(self, project: str, *, keep: int, dry_run: bool = False) -> list[str]:
        """Remove versions that never served, but the newest `keep`, and publications left unfinished for a day.

        Never the active one, one that a rollback can reach, the best ever, or what those were finetuned from.
        Snapshots stay: they are replayed and judged on.

        Returns:
            The names that went, or with `dry_run` would go.
        """
        with self._locked(project):
            going = removable(self.versions(project), self.pointer(project), self.best_ever(project), keep)
            going += unfinished(self.storage, project)
            for name in () if dry_run else going:
                remove_version(self.storage, project, name)
        return going

    def _snapshot_record(self, project: str, digest: str) -> dict[str, Any] | None:
        return self.storage.read_json(f"{_snapshot_folder(project, digest)}/{SNAPSHOT_RECORD_FILE}")

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

    def _upload_missing(self, pictures: dict[str, Content], place: Callable[[str], str]) -> None:
        for name, content in pictures.items():
            if isinstance(content, Path) and self.storage.size(place(name)) != content.stat().st_size:
                self.storage.put(content, place(name))

    def _swap(self, project: str, change: Callable[[Pointer], Pointer]) -> Pointer:
        before = self.pointer(project)
        after = change(before)
        if after != before:
            self.storage.write_json(f"{project}/{POINTER_FILE}", after.as_dict())
        return after

    def _locked(self, project: str) -> Any:
        return exclusively(self.storage, f"{checked_name('project', project)}/{_LOCK_FILE}")


def _figure(version: VersionInfo) -> float | None:
    figures = [version.metrics.get(name) for name in ("mask_ap", "boundary_ap")]
    known = [float(figure) for figure in figures if isinstance(figure, (int, float))]
    return sum(known) if known else None


def _snapshots(project: str) -> str:
    return f"{checked_name('project', project)}/snapshots"


def _snapshot_folder(project: str, digest: str) -> str:
    return f"{_snapshots(project)}/{checked_name('snapshot', digest)}"


def _snapshot_place(project: str, folder: str, manifest: Manifest) -> Callable[[str], str]:
    """Pictures go by content to one folder of the project, everything else to the snapshot's own."""

    def place(name: str) -> str:
        if not name.startswith(_PICTURES):
            return f"{folder}/{name}"
        return f"{project}/images/{manifest[name]['sha256']}{PurePosixPath(name).suffix}"

    return place


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


POINTER_FILE = "ACTIVE"
_EVENTS_KEPT = 200


@dataclass(frozen=True, slots=True)
class Pointer:
    """What ACTIVE says.

    Attributes:
        version: that serves; None before the first promotion.
        at: ISO time of the last change.
        history: {"version", "at"} of those that served before it, oldest first; a rollback takes the last.
        retired: versions that a rollback took out of service.
        events: {"action", "version", "from", "at"}, the newest 200, for people.
    """

    version: str | None = None
    at: str = ""
    history: tuple[dict[str, str], ...] = ()
    retired: tuple[str, ...] = ()
    events: tuple[dict[str, str], ...] = ()

    def promoted(self, version: str, at: str) -> Pointer:
        """With that version in service; unchanged if it serves already."""
        if version == self.version:
            return self
        before = ({"version": self.version, "at": self.at},) if self.version else ()
        return replace(
            self,
            version=version,
            at=at,
            history=self.history + before,
            retired=tuple(name for name in self.retired if name != version),
            events=self._with_event("promote", version, at),
        )

    def rolled_back(self, at: str) -> Pointer:
        """With the version in service that served before; the present one is retired.

        Raises:
            RegistryError: none served before.
        """
        if not self.version or not self.history:
            raise RegistryError(
                f"there is nothing to roll back to: {self.version or 'no version'} is active and none served before; "
                "promote a version by name instead"
            )
        *rest, last = self.history
        serves_again = any(entry["version"] == self.version for entry in rest)
        return replace(
            self,
            version=last["version"],
            at=at,
            history=tuple(rest),
            retired=self.retired if serves_again else (*self.retired, self.version),
            events=self._with_event("rollback", last["version"], at),
        )

    def in_service(self) -> set[str]:
        """The active version and those a rollback can reach."""
        return {entry["version"] for entry in self.history} | ({self.version} if self.version else set())

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "version": self.version,
            "at": self.at,
            "history": list(self.history),
            "retired": list(self.retired),
            "events": list(self.events),
        }

    def _with_event(self, action: str, version: str, at: str) -> tuple[dict[str, str], ...]:
        event = {"action": action, "version": version, "from": self.version or "", "at": at}
        return (*self.events, event)[-_EVENTS_KEPT:]


def parse_pointer(value: dict[str, Any] | None, where: str) -> Pointer:
    """From the JSON of ACTIVE; None is a project that never promoted anything.

    Raises:
        RegistryError: an entry is missing or of another kind.
    """
    if value is None:
        return Pointer()
    try:
        return Pointer(
            version=str(value["version"]) if value["version"] else None,
            at=str(value["at"]),
            history=tuple({"version": entry["version"], "at": entry["at"]} for entry in value["history"]),
            retired=tuple(map(str, value.get("retired", ()))),
            events=tuple(value.get("events", ())),
        )
    except (KeyError, TypeError) as error:
        raise RegistryError(
            f"{where} lacks or misspells {error}; expected version, at and history of {{version, at}}"
        ) from error
