"""Storage of the registry in a folder or bucket, through fsspec: atomic files and directories, one writer at a time.

Names of projects, versions, snapshots and the papers beside a version become parts of paths and URLs.

A pointer swap holds a lock. In a folder it is the system's file lock, which ends with its process. In a bucket a writer
creates a small object and removes it afterwards; the object of a killed writer expires.

Directories are copied file by file, each with its size and sha256. Publishing claims a name, copies the files, and then
writes the record that makes them visible. A publication that is killed leaves nothing visible, and can be repeated with
the same content. Two writers with different content under one name cannot mix: the second one finds the claim.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from model.checkpoints.metadata import CARD_FILE, file_digest
from model.files import replacing, staged_folder

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


class Storage:
    """Files below a root, by names with slashes.

    Args:
        root: a local path, or a URL that fsspec knows (s3://bucket/folder, gs://..., memory://...).

    Raises:
        RegistryError: the URL's scheme is unknown or its package is not installed.
    """

    def __init__(self, root: str | Path) -> None:
        self.url = str(root).rstrip("/")
        scheme = self.url.partition("://")[0] if "://" in self.url else ""
        try:
            # Listings must be fresh: other hosts publish and promote.
            self.fs, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            extra = _EXTRAS.get(scheme, scheme)
            raise RegistryError(
                f"the registry {self.url} needs a package that is not installed ({error}); "
                f"fix: pip install 'transfiner-ml-backend[{extra}]'"
            ) from error
        except ValueError as error:
            raise RegistryError(
                f"the registry is {self.url!r}: {error}; expected a folder, s3://bucket/folder or gs://bucket/folder"
            ) from error
        self.root = str(path).rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Path of a name in the file system."""
        return f"{self.root}/{name}" if name else self.root

    def describe(self, name: str) -> str:
        """Path or URL of a name, for messages."""
        return self.path(name) if self.is_local else f"{self.url}/{name}".rstrip("/")

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is none.

        Raises:
            RegistryError: it cannot be read.
        """
        try:
            content: bytes = self.fs.cat_file(self.path(name))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryError(
                f"{self.describe(name)} cannot be read ({error}); expected a file in a folder or bucket"
            ) from error
        return content

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON object; None if there is no such file.

        Raises:
            RegistryError: the file holds something else.
        """
        content = self.read(name)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except ValueError as error:
            raise RegistryError(f"{self.describe(name)} is not JSON ({error}); restore it from a backup") from error
        if not isinstance(value, dict):
            raise RegistryError(f"{self.describe(name)} holds a {type(value).__name__}, expected a JSON object")
        return value

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        try:
            return int(self.fs.info(self.path(name))["size"])
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Names directly below a folder, in order; none if there is no such folder. Hidden ones are left out."""
        try:
            names = self.fs.ls(self.path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        paths = {str(path).rstrip("/") for path in names}
        own_path = self.path(folder).strip("/")  # buckets list a folder's own entry, too
        names = {path.rpartition("/")[2] for path in paths if path.strip("/") != own_path}
        return sorted(name for name in names if name and not name.startswith("."))

    def write(self, name: str, content: bytes | Path) -> None:
        """Write bytes, or copy a local file, whole: readers see the old content or the new, never a part."""
        if self.is_local:
            with self._staged(name, content) as staged:
                staged.replace(self.path(name))
        elif isinstance(content, Path):
            self.fs.put_file(str(content), self.path(name))
        else:
            self.fs.pipe_file(self.path(name), content)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON object whole."""
        self.write(name, to_json(value))

    def create(self, name: str, content: bytes) -> bool:
        """Write a file whole unless it exists; returns whether this call created it. Of many callers one succeeds."""
        try:
            if self.is_local:
                with self._staged(name, content) as staged:
                    os.link(staged, self.path(name))
            else:
                self.fs.pipe_file(self.path(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def get(self, name: str, target: Path) -> None:
        """Copy a file of the storage to a local path.

        Raises:
            FileNotFoundError: it is not here.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        self.fs.get_file(self.path(name), str(target))

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all it holds; nothing happens if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(name), recursive=True)

    def remove_folder(self, folder: str, *, last_file: str) -> None:
        """Remove a folder, its file `last_file` after all others, so that an interrupted removal leaves it."""
        for path in self.fs.find(self.path(folder)):
            if not str(path).endswith(f"/{last_file}"):
                self.fs.rm_file(path)
        self.remove(folder)

    @contextlib.contextmanager
    def _staged(self, name: str, content: bytes | Path) -> Iterator[Path]:
        """Write the content to a hidden file beside the final one; it is removed afterwards unless it was moved.

        It is synced to the disk: a pointer must not survive a power cut while the files it points to do not.
        """
        final = Path(self.path(name))
        final.parent.mkdir(parents=True, exist_ok=True)
        staged = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        try:
            with staged.open("wb") as file:
                if isinstance(content, Path):
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield staged
        finally:
            staged.unlink(missing_ok=True)


def to_json(value: dict[str, Any]) -> bytes:
    """A JSON object as the registry writes it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
REPORT_FILE = "report.json"
PICTURES = "pictures"


class RegistryError(ValueError):
    """The registry cannot do what was requested; the message says what, where and the fix."""


def checked_name(kind: str, name: str) -> str:
    """Return the name if it can be a folder's name anywhere.

    Raises:
        RegistryError: it is empty, too long, or could leave its folder.
    """
    if not _SAFE.fullmatch(name):
        raise RegistryError(
            f"the {kind} is called {name!r}; expected 1 to 100 letters, digits, '.', '_' or '-', "
            "a letter or digit first"
        )
    return name


def is_artifact(path: str) -> bool:
    """Whether a file describes a version (card, report, pictures) and so may be added or changed later."""
    parts = PurePosixPath(path).parts
    if not parts or any(not _SAFE.fullmatch(part) for part in parts):
        return False
    if len(parts) == 1:
        return parts[0] == CARD_FILE or PurePosixPath(parts[0]).stem == PurePosixPath(REPORT_FILE).stem
    return parts[0] == PICTURES


PATIENCE_S = 60.0
# Far longer than a swap takes; shorter than the patience of waiting writers, who then get a killed owner's lock.
EXPIRY_S = 30.0
_PAUSE_S = 0.02


@contextlib.contextmanager
def exclusively(storage: Storage, name: str, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the lock of that name while the block runs.

    Raises:
        RegistryError: another writer held it longer than `patience_s`.
    """
    lock = _file_lock if storage.is_local else _object_lock
    with lock(storage, name, patience_s):
        yield


@contextlib.contextmanager
def _file_lock(storage: Storage, name: str, patience_s: float) -> Iterator[None]:
    path = Path(storage.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:

        def try_lock() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        _wait_for(try_lock, storage, name, patience_s)
        yield  # closing the file ends the lock, however the block ends


@contextlib.contextmanager
def _object_lock(storage: Storage, name: str, patience_s: float) -> Iterator[None]:
    owner = uuid.uuid4().hex

    def try_lock() -> bool:
        if storage.create(name, to_json({"owner": owner, "expires": time.time() + EXPIRY_S})):
            return True
        if _expired(storage.read(name)):
            storage.remove(name)
        return False

    _wait_for(try_lock, storage, name, patience_s)
    try:
        yield
    finally:
        if owner.encode() in (storage.read(name) or b""):
            storage.remove(name)


def _expired(content: bytes | None) -> bool:
    if content is None:
        return False
    try:
        return float(json.loads(content)["expires"]) < time.time()
    except (ValueError, KeyError, TypeError):
        return True  # not written by this program


def _wait_for(try_lock: Callable[[], bool], storage: Storage, name: str, patience_s: float) -> None:
    give_up_s = time.monotonic() + patience_s
    while not try_lock():
        if time.monotonic() > give_up_s:
            raise RegistryError(
                f"another writer held {storage.describe(name)} for more than {patience_s:g} s; try again, "
                "or remove that file if no process of this project runs"
            )
        time.sleep(_PAUSE_S)


# A file's name in a directory -> {"sha256", "bytes"}.
Manifest = dict[str, dict[str, Any]]
Content = Path | bytes


def files_of(directory: Path) -> dict[str, Content]:
    """All files of a directory by name with slashes; hidden ones are left out."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    relative = {path.relative_to(directory): path for path in paths}
    return {name.as_posix(): path for name, path in relative.items() if not any(part[0] == "." for part in name.parts)}


def manifest_of(contents: Mapping[str, Content]) -> Manifest:
    """Size and sha256 of each content, by name."""
    return {name: facts_of(content) for name, content in sorted(contents.items())}


def upload_files(storage: Storage, contents: Mapping[str, Content], place: Callable[[str], str]) -> None:
    """Copy files into the registry; `place` maps a file's name to its name there."""
    for name, content in contents.items():
        storage.write(place(name), content)


def download_files(
    storage: Storage, manifest: Manifest, place: Callable[[str], str], target: Path, *, shared: Path | None = None
) -> Path:
    """Copy files from the registry into a local directory, complete and checked, unless it has them already.

    Args:
        place: from a file's name to its name in the registry.
        target: the directory; appears complete or not at all.
        shared: folder for files that several directories share (by content); they are linked, not copied.

    Raises:
        RegistryError: a file is missing from the registry or differs from what was published.
    """
    if is_complete(target, manifest):
        return target
    with staged_folder(target) as staged:
        for name, file_facts in manifest.items():
            if shared is None:
                _get(storage, place(name), staged / name, file_facts)
            else:
                _get_shared(storage, place(name), staged / name, file_facts, shared)
        _swap_in(staged, target, manifest)
    return target


def is_complete(directory: Path, manifest: Manifest) -> bool:
    """Whether a directory holds all these files, unharmed."""
    return all(
        (directory / name).is_file() and facts_of(directory / name) == file_facts
        for name, file_facts in manifest.items()
    )


def facts_of(content: Content) -> dict[str, Any]:
    if isinstance(content, bytes):
        return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return {"sha256": file_digest(content), "bytes": content.stat().st_size}


def _get(storage: Storage, source: str, target: Path, file_facts: dict[str, Any]) -> None:
    try:
        storage.get(source, target)
    except FileNotFoundError as error:
        raise RegistryError(
            f"{storage.describe(source)} is gone from the registry; restore it from a backup, or use another version"
        ) from error
    if (current := facts_of(target)) != file_facts:
        raise RegistryError(
            f"{storage.describe(source)} has {current['bytes']} bytes and sha256 {current['sha256']}, published were "
            f"{file_facts['bytes']} bytes and {file_facts['sha256']}: it was damaged or changed; "
            "restore it from a backup, or use another version"
        )


def _get_shared(storage: Storage, source: str, target: Path, file_facts: dict[str, Any], shared: Path) -> None:
    shared_file = shared / f"{file_facts['sha256']}{target.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not shared_file.is_file() or facts_of(shared_file) != file_facts:
        with replacing(shared_file) as unfinished:
            _get(storage, source, unfinished, file_facts)
    try:
        os.link(shared_file, target)
    except OSError:  # another device, or a file system without links
        shutil.copyfile(shared_file, target)


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
        papers: published beside it; they may change later.
        content_digest: identifies the content; by default the digest of all files.

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
    """Current time, ISO, UTC."""
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
