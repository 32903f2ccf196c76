"""What may go from a registry: old versions that never served, and publications that nobody finished."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from training.registry.pointer import Pointer
from training.registry.publication import CLAIM_FILE
from training.registry.records import VersionInfo
from training.registry.storage import Storage
from training.registry.versions import RECORD_FILE, folder_names, version_folder

# An upload takes minutes; whoever needed a day was killed.
_UNFINISHED_AFTER = timedelta(days=1)


def removable(versions: Sequence[VersionInfo], pointer: Pointer, best: str | None, keep: int) -> list[str]:
    """Names of versions that may go, oldest first.

    Kept are the active one, all a rollback can reach, the best ever, everything those were finetuned from, and the
    newest `keep` besides.
    """
    by_name = {one.name: one for one in versions}
    kept: set[str] = set()
    waiting = [*pointer.in_service(), *([best] if best else [])]
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in kept:
            kept.add(name)
            waiting.append(by_name[name].parent)
    others = [one.name for one in versions if one.name not in kept]
    return others[: max(0, len(others) - keep)]


def unfinished(storage: Storage, project: str, at: datetime | None = None) -> list[str]:
    """Folders of publications begun more than a day ago and never finished."""
    at = at or datetime.now(UTC)
    found = []
    for name in folder_names(storage, project):
        folder = version_folder(project, name)
        if storage.size(f"{folder}/{RECORD_FILE}") is None and _is_old(storage, folder, at):
            found.append(name)
    return found


def remove_version(storage: Storage, project: str, version: str) -> None:
    """Take a version out of sight first, so that nobody sees half of it, then remove its files.

    The claim goes last: what an interrupted removal leaves looks like an unfinished publication, and goes next time.
    """
    folder = version_folder(project, version)
    storage.remove(f"{folder}/{RECORD_FILE}")
    storage.remove_folder(folder, last=CLAIM_FILE)


def _is_old(storage: Storage, folder: str, at: datetime) -> bool:
    claim = storage.read_json(f"{folder}/{CLAIM_FILE}")
    return claim is not None and datetime.fromisoformat(str(claim["at"])) < at - _UNFINISHED_AFTER
