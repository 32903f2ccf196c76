"""The folder of downloaded files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.images.fetch import FileCache


def cache(directory: Path, max_bytes: int = 1000, max_age_s: float = 3600) -> FileCache:
    return FileCache(directory, max_bytes=max_bytes, max_age_s=max_age_s)


def age(directory: Path, seconds: float) -> None:
    for path in directory.iterdir():
        stat = path.stat()
        os.utime(path, (stat.st_atime - seconds, stat.st_mtime - seconds))


def test_keeps_and_forgets(tmp_path: Path) -> None:
    kept = cache(tmp_path / "new" / "folder")
    assert kept.get("key") is None
    kept.put("key", b"one")
    kept.put("key", b"two")
    assert kept.get("key") == b"two"
    assert cache(tmp_path / "new" / "folder").get("key") == b"two"
    kept.discard("key")
    kept.discard("key")
    assert kept.get("key") is None


def test_old_files_count_as_missing_even_when_used(tmp_path: Path) -> None:
    kept = cache(tmp_path, max_age_s=100)
    kept.put("key", b"data")
    age(tmp_path, 90)
    assert kept.get("key") == b"data"
    age(tmp_path, 20)
    assert kept.get("key") is None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    kept = cache(tmp_path, max_bytes=100)
    for key in "abcd":
        kept.put(key, bytes(25))
        age(tmp_path, 10)
    kept.get("a")
    kept.put("e", bytes(25))
    assert [key for key in "abcde" if kept.get(key) is not None] == ["a", "c", "d", "e"]


def test_a_full_folder_is_emptied_at_the_first_write(tmp_path: Path) -> None:
    large = cache(tmp_path, max_bytes=10_000)
    for number in range(20):
        large.put(str(number), bytes(100))
        age(tmp_path, 10)
    cache(tmp_path, max_bytes=500).put("x", b"1")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 500


def test_files_larger_than_the_limit_are_not_kept(tmp_path: Path) -> None:
    kept = cache(tmp_path, max_bytes=10)
    kept.put("key", bytes(11))
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_is_left_or_found(tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.put("key", b"data")
    assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.glob(".new-*"))


@pytest.mark.parametrize("key", ["../../etc/passwd", "a" * 5000, "http://x/ü?q=1", ""])
def test_any_key_is_a_file_in_the_folder(tmp_path: Path, key: str) -> None:
    kept = cache(tmp_path)
    kept.put(key, b"data")
    assert kept.get(key) == b"data"
    (path,) = tmp_path.iterdir()
    assert path.parent == tmp_path
