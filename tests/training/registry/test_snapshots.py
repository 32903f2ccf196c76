"""Snapshots come back as they were; pictures they share are stored and copied once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from training.registry import Registry, RegistryError

Make = Callable[..., Path]


def test_snapshots_come_back_oldest_first(registry: Registry, snapshot: Make, tmp_path: Path) -> None:
    first = snapshot("bbb", {"1.png": b"one"}, newest="2026-01-01")
    registry.publish_snapshot("12", first)
    registry.publish_snapshot("12", snapshot("aaa", {"1.png": b"one", "2.png": b"two"}, newest="2026-01-02"))
    assert registry.publish_snapshot("12", first) == "bbb"
    assert [(snapshot.digest, snapshot.counts["images"]) for snapshot in registry.snapshots("12")] == [
        ("bbb", 1),
        ("aaa", 2),
    ]
    assert registry.snapshots("12")[-1].newest_annotation_at == "2026-01-02"
    copy = registry.fetch_snapshot("12", "bbb", tmp_path / "cache")
    assert {path.relative_to(copy) for path in copy.rglob("*")} == {
        path.relative_to(first) for path in first.rglob("*")
    }
    assert (copy / "images" / "1.png").read_bytes() == b"one"


def test_a_shared_picture_is_stored_and_copied_once(registry: Registry, snapshot: Make, tmp_path: Path) -> None:
    for digest, name in (("aaa", "1.png"), ("bbb", "renamed.png")):
        registry.publish_snapshot("12", snapshot(digest, {name: b"same"}))
    assert len(registry.storage.names("12/images")) == 1
    copies = [registry.fetch_snapshot("12", digest, tmp_path / "cache") for digest in ("aaa", "bbb")]
    files = [copies[0] / "images" / "1.png", copies[1] / "images" / "renamed.png"]
    assert files[0].samefile(files[1])


def test_a_damaged_picture_is_noticed(registry: Registry, snapshot: Make, tmp_path: Path) -> None:
    registry.publish_snapshot("12", snapshot("aaa", {"1.png": b"one"}))
    [name] = registry.storage.names("12/images")
    registry.storage.write(f"12/images/{name}", b"ONE")
    with pytest.raises(RegistryError, match="damaged or changed"):
        registry.fetch_snapshot("12", "aaa", tmp_path / "cache")


def test_what_is_no_snapshot_is_refused(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"manifest\.json is missing"):
        registry.publish_snapshot("12", tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(RegistryError, match="needs a digest"):
        registry.publish_snapshot("12", tmp_path)
    with pytest.raises(RegistryError, match=r"no snapshot 'aaa' .* it has none"):
        registry.fetch_snapshot("12", "aaa", tmp_path)
