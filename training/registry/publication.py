"""How something immutable comes to be: claim the name, copy the files, and only then write the record that shows it.

Whoever is killed on the way leaves nothing visible, and can go on with the same content. Two writers with different
content under one name cannot mix: the second one finds the claim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from training.registry.names import RegistryError
from training.registry.storage import Storage, to_json
from training.registry.transfer import Content, digest_of, manifest_of, upload

CLAIM_FILE = "claim.json"


def publish(
    storage: Storage,
    folder: str,
    record_file: str,
    contents: Mapping[str, Content],
    facts: Mapping[str, Any],
    *,
    place: Callable[[str], str],
    papers: Mapping[str, Content] | None = None,
    content_digest: str | None = None,
) -> dict[str, Any]:
    """Make files visible under a folder, at once and for ever; returns their record.

    Args:
        folder: in the registry; record_file: the file in it that is written last and makes it visible.
        contents: what to publish; place: where in the registry each goes.
        facts: further entries of the record.
        papers: published beside it, without being part of what can never change.
        content_digest: what the content is known by; that of all files by default.

    Raises:
        RegistryError: other content is published or being published there.
    """
    manifest = manifest_of(contents)
    digest = content_digest or digest_of(manifest)
    record_name = f"{folder}/{record_file}"
    if (present := storage.read_json(record_name)) is not None:
        return _same_content(present, digest, storage.describe(folder))
    _claim(storage, folder, digest)
    upload(storage, {**(papers or {}), **contents}, place)
    record = {**facts, "published": now(), "content": digest, "files": manifest}
    storage.create(record_name, to_json(record))
    # Whoever was first to write it, all read the same.
    return _same_content(storage.read_json(record_name) or record, digest, storage.describe(folder))


def now() -> str:
    """The present, ISO, UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _claim(storage: Storage, folder: str, digest: str) -> None:
    claim = f"{folder}/{CLAIM_FILE}"
    if storage.create(claim, to_json({"content": digest, "at": now()})):
        return
    present = storage.read_json(claim) or {}
    if present.get("content") != digest:
        raise RegistryError(
            f"{storage.describe(folder)} was begun at {present.get('at', 'an unknown time')} with other content and "
            "never finished; choose another name, or remove it by `transfiner models gc` (after a day)"
        )


def _same_content(record: dict[str, Any], digest: str, where: str) -> dict[str, Any]:
    if record["content"] != digest:
        raise RegistryError(
            f"{where} is published with other content ({record['content'][:12]} there, {digest[:12]} now); "
            "what is published never changes: choose another name"
        )
    return record
