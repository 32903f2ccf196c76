"""Directories to the registry and back, file by file, each with its size and sha256.

Publishing claims a name, copies the files, and only then writes the record that makes them visible. Whoever is killed
on the way leaves nothing visible, and can go on with the same content. Two writers with different content under one
name cannot mix: the second one finds the claim.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.checkpoints.metadata import file_digest
from model.files import replacing, staged_folder
from training.registry.storage import RegistryError, Storage, to_json

# A file's name in a directory -> {"sha256", "bytes"}.
Manifest = dict[str, dict[str, Any]]
Content = Path | bytes


def files_of(directory: Path) -> dict[str, Content]:
    """All files of a directory by name with slashes; hidden ones are left out."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    relative = {path.relative_to(directory): path for path in paths}
    return {name.as_posix(): path for name, path in relative.items() if not any(p[0] == "." for p in name.parts)}


def manifest_of(contents: Mapping[str, Content]) -> Manifest:
    """Size and sha256 of each."""
    return {name: _described(content) for name, content in sorted(contents.items())}


def upload_files(storage: Storage, contents: Mapping[str, Content], place: Callable[[str], str]) -> None:
    """Copy files to where `place` puts their names."""
    for name, content in contents.items():
        storage.write(place(name), content)


def download_files(
    storage: Storage, manifest: Manifest, place: Callable[[str], str], target: Path, *, shared: Path | None = None
) -> Path:
    """A local directory with these files, complete and checked; nothing is copied that lies there already.

    Args:
        place: from a file's name to its name in the registry.
        target: the directory; appears complete or not at all.
        shared: folder for files that several directories share (by content); they are linked, not copied.

    Raises:
        RegistryError: a file is gone from the registry or not what was published.
    """
    if is_complete(target, manifest):
        return target
    with staged_folder(target) as staged:
        for name, described in manifest.items():
            if shared is None:
                _get(storage, place(name), staged / name, described)
            else:
                _get_shared(storage, place(name), staged / name, described, shared)
        _swap_in(staged, target, manifest)
    return target


def is_complete(directory: Path, manifest: Manifest) -> bool:
    """Whether a directory holds all these files, unharmed."""
    return all(
        (directory / name).is_file() and _described(directory / name) == described
        for name, described in manifest.items()
    )


def _described(content: Content) -> dict[str, Any]:
    if isinstance(content, bytes):
        return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return {"sha256": file_digest(content), "bytes": content.stat().st_size}


def _get(storage: Storage, source: str, target: Path, described: dict[str, Any]) -> None:
    try:
        storage.get(source, target)
    except FileNotFoundError as error:
        raise RegistryError(
            f"{storage.describe(source)} is gone from the registry; restore it from a backup, or use another version"
        ) from error
    if (current := _described(target)) != described:
        raise RegistryError(
            f"{storage.describe(source)} has {current['bytes']} bytes and sha256 {current['sha256']}, published were "
            f"{described['bytes']} bytes and {described['sha256']}: it was damaged or changed; "
            "restore it from a backup, or use another version"
        )


def _get_shared(storage: Storage, source: str, target: Path, described: dict[str, Any], shared: Path) -> None:
    kept = shared / f"{described['sha256']}{target.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not kept.is_file() or _described(kept) != described:
        with replacing(kept) as unfinished:
            _get(storage, source, unfinished, described)
    try:
        os.link(kept, target)
    except OSError:  # another device, or a file system without links
        shutil.copyfile(kept, target)


def _swap_in(staged: Path, target: Path, manifest: Manifest) -> None:
    if target.exists():  # incomplete or damaged, or just finished by another process
        if is_complete(target, manifest):
            return
        target.rename(staged.with_name(f"{staged.name}.damaged"))
    try:
        staged.rename(target)
    except OSError:
        if not is_complete(target, manifest):
            raise
    shutil.rmtree(staged.with_name(f"{staged.name}.damaged"), ignore_errors=True)


CLAIM_FILE = "claim.json"


def publish(
    storage: Storage,
    record_file: str,
    contents: Mapping[str, Content],
    facts: Mapping[str, Any],
    *,
    place: Callable[[str], str],
    papers: Mapping[str, Content] | None = None,
    content_digest: str | None = None,
) -> None:
    """Make files visible under a folder, at once and for ever.

    Args:
        record_file: the file in that folder that is written last and makes it visible.
        contents: what to publish; place: where in the registry each goes.
        papers: published beside it, without being part of what can never change.
        content_digest: what the content is known by; that of all files by default.

    Raises:
        RegistryError: other content is published or being published there.
    """
    manifest, folder = manifest_of(contents), record_file.rpartition("/")[0]
    digest = content_digest or hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    present = storage.read_json(record_file)
    if present is None:
        _claim(storage, folder, digest)
        upload_files(storage, {**(papers or {}), **contents}, place)
        record = {**facts, "published": utc_now(), "content": digest, "files": manifest}
        if storage.create(record_file, to_json(record)):
            return
        present = storage.read_json(record_file) or record  # another writer was first
    if present["content"] != digest:
        raise RegistryError(
            f"{storage.describe(folder)} is published with other content ({present['content'][:12]} there, "
            f"{digest[:12]} now); what is published never changes: choose another name"
        )


def utc_now() -> str:
    """The present, ISO, UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _claim(storage: Storage, folder: str, digest: str) -> None:
    claim = f"{folder}/{CLAIM_FILE}"
    if storage.create(claim, to_json({"content": digest, "at": utc_now()})):
        return
    present = storage.read_json(claim) or {}
    if present.get("content") != digest:
        raise RegistryError(
            f"{storage.describe(folder)} was begun at {present.get('at', 'an unknown time')} with other content and "
            "never finished; choose another name, or remove it by `transfiner models gc` (after a day)"
        )
