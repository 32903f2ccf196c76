"""A folder or a bucket, through fsspec: whole files appear at once, and can be created by one writer only.

Names of projects, versions, snapshots and the papers beside a version become parts of paths and URLs.

Two writers of one project are kept apart for the moment of a pointer swap. In a folder that is the system's file lock,
which ends with its process. A bucket has none: there one writer creates a small object and removes it afterwards; what
a killed writer left behind expires.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from model.checkpoints.metadata import CARD_FILE

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
        """Where a name lies, as the file system spells it."""
        return f"{self.root}/{name}" if name else self.root

    def describe(self, name: str) -> str:
        """Where a name lies, for people and messages."""
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
        own = self.path(folder).strip("/")  # buckets list a folder's own entry, too
        names = {path.rpartition("/")[2] for path in paths if path.strip("/") != own}
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
        """Write a file whole unless it is there already; says whether this call made it. One of many callers wins."""
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
        """Copy a file from here to a local path.

        Raises:
            FileNotFoundError: it is not here.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        self.fs.get_file(self.path(name), str(target))

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all it holds; nothing happens if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(name), recursive=True)

    def remove_folder(self, folder: str, *, last: str) -> None:
        """Remove a folder; of its files the one called `last` goes last, however far this gets."""
        for path in self.fs.find(self.path(folder)):
            if not str(path).endswith(f"/{last}"):
                self.fs.rm_file(path)
        self.remove(folder)

    @contextlib.contextmanager
    def _staged(self, name: str, content: bytes | Path) -> Iterator[Path]:
        """The content in a hidden file beside the final one; whatever is left there afterwards is removed.

        It is on the disk itself: a pointer must not survive a power cut while what it points to does not.
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
    """The registry cannot do what was asked; the message says what, where and the fix."""


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
    """Whether a file of a version is about it (card, report, pictures) and so may come later and change."""
    parts = PurePosixPath(path).parts
    if not parts or any(not _SAFE.fullmatch(part) for part in parts):
        return False
    if len(parts) == 1:
        return parts[0] == CARD_FILE or PurePosixPath(parts[0]).stem == PurePosixPath(REPORT_FILE).stem
    return parts[0] == PICTURES


PATIENCE_S = 60.0
# Far longer than a swap takes; shorter than the patience of others, so that they outlive a killed owner.
EXPIRY_S = 30.0
_PAUSE_S = 0.02


@contextlib.contextmanager
def exclusively(storage: Storage, name: str, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the lock of that name while the block runs.

    Raises:
        RegistryError: another writer held it longer than `patience_s`.
    """
    held = _file_lock if storage.is_local else _object_lock
    with held(storage, name, patience_s):
        yield


@contextlib.contextmanager
def _file_lock(storage: Storage, name: str, patience_s: float) -> Iterator[None]:
    path = Path(storage.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:

        def taken() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        _wait_for(taken, storage, name, patience_s)
        yield  # closing the file ends the lock, however the block ends


@contextlib.contextmanager
def _object_lock(storage: Storage, name: str, patience_s: float) -> Iterator[None]:
    owner = uuid.uuid4().hex

    def taken() -> bool:
        if storage.create(name, to_json({"owner": owner, "expires": time.time() + EXPIRY_S})):
            return True
        if _expired(storage.read(name)):
            storage.remove(name)
        return False

    _wait_for(taken, storage, name, patience_s)
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
        return True  # nobody of us wrote that


def _wait_for(taken: Callable[[], bool], storage: Storage, name: str, patience_s: float) -> None:
    give_up_s = time.monotonic() + patience_s
    while not taken():
        if time.monotonic() > give_up_s:
            raise RegistryError(
                f"another writer held {storage.describe(name)} for more than {patience_s:g} s; try again, "
                "or remove that file if no process of this project runs"
            )
        time.sleep(_PAUSE_S)
