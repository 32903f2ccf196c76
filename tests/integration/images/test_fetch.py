"""From task data to addresses, and the folder of downloaded files."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.images.fetch import FileCache, decode_data_uri, image_value, locate
from model.images import ImageError

RECORDINGS = Path(__file__).parents[2] / "recordings"
BASE = "http://ls:8080"
S3 = "s3://bucket/a folder/ü.jpg"
RESOLVED = "/tasks/5/resolve/?fileuri=" + base64.urlsafe_b64encode(S3.encode()).decode()


def recorded_task(name: str) -> dict[str, Any]:
    (path,) = RECORDINGS.glob(f"{name}*.json")
    exchanges = json.loads(path.read_text())["exchanges"]
    return next(e for e in exchanges if e["request"]["path"] == "/predict")["request"]["json"]["tasks"][0]


@pytest.mark.parametrize(
    ("value", "base_url", "expected"),
    [
        ("/data/upload/1/a.jpg", BASE, BASE + "/data/upload/1/a.jpg"),
        ("/data/local-files/?d=a%20b.jpg", BASE, BASE + "/data/local-files/?d=a%20b.jpg"),
        ("/data/upload/1/a.jpg", BASE + "/studio", BASE + "/studio/data/upload/1/a.jpg"),
        ("/studio/data/upload/1/a.jpg", BASE + "/studio/", BASE + "/studio/data/upload/1/a.jpg"),
        ("http://localhost:8080/data/local-files/?d=a%20b", BASE, BASE + "/data/local-files/?d=a%20b"),
        ("http://localhost:8080/data/x.jpg", "", "http://localhost:8080/data/x.jpg"),
        ("http://localhost:9999/data/x.jpg", BASE, "http://localhost:9999/data/x.jpg"),
        ("https://label.example/sub/data/x.jpg", BASE + "/in", BASE + "/in/data/x.jpg"),
        ("HTTP://other/x.jpg?sign=1", BASE, "HTTP://other/x.jpg?sign=1"),
        (S3, BASE, BASE + RESOLVED),
        ("gs://b/k", BASE + "/sub", BASE + "/sub/tasks/5/resolve/?fileuri=Z3M6Ly9iL2s="),
        ("data:image/png;base64,AAAA", "", "data:image/png;base64,AAAA"),
    ],
)
def test_addresses(value: str, base_url: str, expected: str) -> None:
    aliases = ("http://localhost:8080", "https://label.example/sub")
    assert locate(value, {"id": 5}, base_url, aliases) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("05_", "/data/upload/1/1ddaddbc-000000008844.jpg"),
        ("11_", "/tasks/22/resolve/?fileuri=czM6Ly9pbWdzL3NldDEvMDAwMDAwNTU4MDczLmpwZw=="),
        ("12_", "/data/local-files/?d=ds/a%20b.jpg"),
        ("13_", "/data/upload/8/8dc216a2-u.jpg"),
    ],
)
def test_recorded_tasks(name: str, expected: str) -> None:
    task = recorded_task(name)
    location = locate(image_value(task, "image"), task, BASE, ("http://127.0.0.1:8081",))
    assert location == BASE + expected


@pytest.mark.parametrize(
    ("value", "task", "base_url", "words"),
    [
        ("/data/upload/1/a.jpg", {"id": 5}, "", "set LABEL_STUDIO_URL"),
        ("s3://b/k", {"id": 5}, "", "set LABEL_STUDIO_URL"),
        ("s3://b/k", {}, BASE, "task with an id"),
        ("ftp://host/x.jpg", {"id": 5}, BASE, "unknown form"),
        ("file:///etc/passwd", {"id": 5}, BASE, "unknown form"),
        ("//host/x.jpg", {"id": 5}, BASE, "unknown form"),
        ("a.jpg", {"id": 5}, BASE, "unknown form"),
        ("C:\\a.jpg", {"id": 5}, BASE, "unknown form"),
        ("http://host:port/x.jpg", {"id": 5}, BASE, "malformed"),
        ("http://[::1/x.jpg", {"id": 5}, BASE, "malformed"),
    ],
)
def test_addresses_that_lead_nowhere(value: str, task: Any, base_url: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        locate(value, task, base_url, ("http://localhost:1",))


@pytest.mark.parametrize(
    ("data", "key", "expected"),
    [({"image": " /data/x "}, "image", "/data/x"), ({"a": {"b": "x"}}, "a.b", "x"), ({"a.b": "x"}, "a.b", "x")],
)
def test_values(data: Any, key: str, expected: str) -> None:
    assert image_value({"data": data}, key) == expected


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({}, "no data"),
        ({"data": [1]}, "no data"),
        ({"data": {}}, "an address under 'image'"),
        ({"data": {"photo": "x"}}, r"among the keys \['photo'\]"),
        ({"data": {"image": ""}}, "no image"),
        ({"data": {"image": 5}}, "no image"),
        ({"data": {"image": ["a", "b"]}}, "no image"),
    ],
)
def test_tasks_without_an_image(task: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        image_value(task, "image")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("data:image/png;base64,aGVsbG8=", b"hello"),
        ("data:image/png;BASE64,aGVsbG8%3D", b"hello"),
        ("data:,a%20b", b"a b"),
    ],
)
def test_data_uris(uri: str, expected: bytes) -> None:
    assert decode_data_uri(uri, 100) == expected


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,a", "malformed"),
        ("data:image/png;base64,ü", "malformed"),
        ("data:;base64," + "A" * 400, "at most 100 bytes"),
        ("data:," + "A" * 101, "at most 100 bytes"),
        ("data:;base64," + "A" * 136, "at most 100 bytes"),
    ],
)
def test_bad_data_uris(uri: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode_data_uri(uri, 100)


@given(st.text(max_size=30) | st.from_regex(r"(http|s3|data|gs)s?:/{0,3}[\[\]@:%a0.,;]{0,12}", fullmatch=True))
def test_any_text_is_located_or_refused(value: str) -> None:
    try:
        assert locate(value, {"id": 1}, BASE, ("http://localhost:8080",))
    except ImageError as error:
        assert error.fix  # noqa: PT017


@pytest.mark.parametrize("alias", ["http://me:pass@ls", "http://[::1", "http://ls:port", "http://ls\\x", "", "ls"])
def test_a_malformed_alias_fails_no_task(alias):
    """Whoever sends a /setup names it."""
    assert locate("http://cdn/a.png", {"id": 1}, "http://ls", [alias]) == "http://cdn/a.png"


def cache(directory: Path, max_bytes: int = 1000, max_age_s: float = 3600) -> FileCache:
    return FileCache(directory, max_bytes=max_bytes, max_age_s=max_age_s)


def age(directory: Path, seconds: float) -> None:
    for path in directory.iterdir():
        stat = path.stat()
        os.utime(path, (stat.st_atime - seconds, stat.st_mtime - seconds))


def test_keeps_and_forgets(tmp_path: Path) -> None:
    file_cache = cache(tmp_path / "new" / "folder")
    assert file_cache.get("key") is None
    file_cache.put("key", b"one")
    file_cache.put("key", b"two")
    assert file_cache.get("key") == b"two"
    assert cache(tmp_path / "new" / "folder").get("key") == b"two"
    file_cache.discard("key")
    file_cache.discard("key")
    assert file_cache.get("key") is None


def test_old_files_count_as_missing_even_when_used(tmp_path: Path) -> None:
    file_cache = cache(tmp_path, max_age_s=100)
    file_cache.put("key", b"data")
    age(tmp_path, 90)
    assert file_cache.get("key") == b"data"
    age(tmp_path, 20)
    assert file_cache.get("key") is None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    file_cache = cache(tmp_path, max_bytes=100)
    for key in "abcd":
        file_cache.put(key, bytes(25))
        age(tmp_path, 10)
    file_cache.get("a")
    file_cache.put("e", bytes(25))
    assert [key for key in "abcde" if file_cache.get(key) is not None] == ["a", "c", "d", "e"]


def test_a_full_folder_is_emptied_at_the_first_write(tmp_path: Path) -> None:
    large = cache(tmp_path, max_bytes=10_000)
    for number in range(20):
        large.put(str(number), bytes(100))
        age(tmp_path, 10)
    cache(tmp_path, max_bytes=500).put("x", b"1")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 500


def test_files_larger_than_the_limit_are_not_kept(tmp_path: Path) -> None:
    file_cache = cache(tmp_path, max_bytes=10)
    file_cache.put("key", bytes(11))
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_is_left_or_found(tmp_path: Path) -> None:
    file_cache = cache(tmp_path)
    file_cache.put("key", b"data")
    assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.glob(".new-*"))


@pytest.mark.parametrize("key", ["../../etc/passwd", "a" * 5000, "http://x/ü?q=1", ""])
def test_any_key_is_a_file_in_the_folder(tmp_path: Path, key: str) -> None:
    file_cache = cache(tmp_path)
    file_cache.put(key, b"data")
    assert file_cache.get(key) == b"data"
    (path,) = tmp_path.iterdir()
    assert path.parent == tmp_path
