"""Keeps two writers of one project apart for the moment of a pointer swap.

In a folder it is the system's file lock, which ends with its process. A bucket has none: there one writer creates a
small object and removes it afterwards; what a killed writer left behind expires.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from training.registry.storage import RegistryError, Storage, to_json

PATIENCE_S = 60.0
# Far longer than a swap takes; shorter than the patience of others, so that they outlive a killed owner.
EXPIRY_S = 30.0
_PAUSE_S = 0.02


@contextlib.contextmanager
def exclusively(
    storage: Storage, name: str, *, patience_s: float = PATIENCE_S, expiry_s: float = EXPIRY_S
) -> Iterator[None]:
    """Hold the lock of that name while the block runs.

    Raises:
        RegistryError: another writer held it longer than `patience_s`.
    """
    held = _file_lock if storage.is_local else _object_lock
    with held(storage, name, patience_s, expiry_s):
        yield


@contextlib.contextmanager
def _file_lock(storage: Storage, name: str, patience_s: float, expiry_s: float) -> Iterator[None]:  # noqa: ARG001
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
def _object_lock(storage: Storage, name: str, patience_s: float, expiry_s: float) -> Iterator[None]:
    owner = uuid.uuid4().hex

    def taken() -> bool:
        if storage.create(name, to_json({"owner": owner, "expires": time.time() + expiry_s})):
            return True
        if _expired(storage.read(name)):
            storage.remove(name)
        return False

    _wait_for(taken, storage, name, patience_s)
    try:
        yield
    finally:
        content = storage.read(name)
        if content is not None and owner.encode() in content:
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
