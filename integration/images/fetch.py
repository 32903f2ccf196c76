"""The images of tasks: found, fetched within bounds, cached and decoded.

The forms of `task.data[key]` that Label Studio knows, as addresses to fetch:

| value | address |
|---|---|
| `/data/upload/1/a.jpg`, `/data/local-files/?d=a.jpg` | Label Studio's own |
| `http://label-studio/data/...` by a name that only browsers can use | the same at the configured address |
| `s3://bucket/key` and other storage schemes | Label Studio's resolve endpoint, with the task's id |
| other http(s) | as it is |
| `data:image/png;base64,...` | decoded at once |

Shapes: H, W of the upright image.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np

from integration.images.download import AddressPolicy, Downloader, FetchSettings, origin, shown_url, without_secrets
from integration.label_studio.client import LabelStudioAuth
from model.images import ImageError, MemoryBudget, decode_image

log = logging.getLogger(__name__)


class ImageFetcher:
    """Fetches the images of tasks; safe to use from several threads.

    Args:
        settings: see `FetchSettings`.
        auth: credentials to share with a client; made from the settings when None.
    """

    def __init__(
        self, settings: FetchSettings, *, auth: LabelStudioAuth | None = None, budget: MemoryBudget | None = None
    ) -> None:
        self._settings = settings
        self._budget = budget or MemoryBudget(settings.decoding_bytes)
        self._base_url = settings.label_studio_url.rstrip("/")
        if auth is None and self._base_url:
            auth = LabelStudioAuth(self._base_url, settings.api_key)
        self._downloader = Downloader(settings, AddressPolicy(self._private_hosts()), auth)
        self._cache = (
            FileCache(settings.cache_dir, max_bytes=settings.cache_bytes, max_age_s=settings.cache_max_age_s)
            if settings.cache_dir
            else None
        )

    def fetch(self, task: Mapping[str, Any], value_key: str) -> np.ndarray:
        """The image of a task.

        Returns:
            uint8, H x W x 3, RGB, EXIF orientation applied.
        """
        address = self._address(task, value_key)
        data = self._get(address)
        try:
            return decode_image(
                data, name=shown_url(address), max_pixels=self._settings.max_pixels, budget=self._budget
            )
        except ImageError:
            if self._cache is not None:
                self._cache.discard(address)  # ask again next time: it may have been repaired
            raise

    def fetch_bytes(self, task: Mapping[str, Any], value_key: str) -> bytes:
        """The file of a task as it is stored, for content hashes and exports. Raises ImageError."""
        return self._get(self._address(task, value_key))

    def _address(self, task: Mapping[str, Any], value_key: str) -> str:
        value = image_value(task, value_key)
        return locate(value, task, self._base_url, self._settings.label_studio_aliases)

    def _get(self, address: str) -> bytes:
        if address[:5].lower() == "data:":
            return decode_data_uri(address, self._settings.max_bytes)
        cached_data = self._cache.get(address) if self._cache is not None else None
        if cached_data is not None:
            return cached_data
        data = self._downloader.get(address)
        self._keep(address, data)
        return data

    def _keep(self, address: str, data: bytes) -> None:
        if self._cache is None:
            return
        try:
            self._cache.put(address, data)
        except OSError as error:  # a full disk must not cost the prediction
            log.warning("image cache %s: cannot keep %s: %s", self._settings.cache_dir, shown_url(address), error)

    def _private_hosts(self) -> tuple[str, ...]:
        """Label Studio itself may be anywhere, but only on its own port."""
        if not self._base_url:
            return self._settings.private_hosts
        _, host, port = origin(self._base_url)
        return (*self._settings.private_hosts, f"{host}:{port}")


#: Storage schemes that Label Studio resolves.
CLOUD_SCHEMES = frozenset({"s3", "s3s", "gs", "azure-blob", "azure_blob"})


def image_value(task: Mapping[str, Any], value_key: str) -> str:
    """The address of a task's image.

    Args:
        value_key: a key of the data, a path such as `pages[0].url`, or a text with `$` names in it such as
            `https://cdn/$file`, which stand for what lies under these paths, as in Label Studio's editor.
    """
    data = task.get("data")
    if not isinstance(data, Mapping):
        raise _bad_task("a task has no data", f"{without_secrets(repr(data)):.80}", "an object with the image")
    value: Any = _fill_in(value_key, data) if "$" in value_key and value_key not in data else _lookup(value_key, data)
    if not isinstance(value, str) or not value.strip():
        value_text = f"{without_secrets(repr(value)):.80} among the keys {sorted(map(str, data))!r:.200}"
        raise _bad_task("a task has no image", f"{value_key!r} = {value_text}", f"an address under {value_key!r}")
    return value.strip()


_NAME = re.compile(r"\$\{([^{}$]+)\}|\$([A-Za-z_]\w*(?:\.\w+|\[\d+\])*)")
_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def _lookup(path: str, data: Mapping[str, Any]) -> Any:
    """What lies under a path of keys, dots and [indices]; None where there is nothing."""
    if path in data:
        return data[path]
    value: Any = data
    for index, key in _STEP.findall(path):
        if index:
            value = value[int(index)] if isinstance(value, list) and int(index) < len(value) else None
        else:
            value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _fill_in(text: str, data: Mapping[str, Any]) -> str | None:
    """A text with its `$` names replaced by the longest path that leads to a text; None if one leads nowhere."""
    has_gap = False

    def fill(match: re.Match[str]) -> str:
        nonlocal has_gap
        path = match[1] or match[2]
        ends = [len(path), *(place for place in range(len(path) - 1, 0, -1) if path[place] in ".[" and not match[1])]
        for end in ends:
            value = _lookup(path[:end], data)
            if isinstance(value, str | int) and not isinstance(value, bool):
                return f"{value}{path[end:]}"
        has_gap = True
        return ""

    address = _NAME.sub(fill, text)
    return None if has_gap else address


def locate(value: str, task: Mapping[str, Any], base_url: str, aliases: Sequence[str] = ()) -> str:
    """The address to fetch for an image value; data URIs come back as they are.

    Args:
        task: its `id` is needed for cloud storage.
        base_url: Label Studio as this machine reaches it; "" when there is none.
    """
    scheme = value.partition(":")[0].lower() if ":" in value else ""
    if scheme == "data":
        return value
    if value.startswith("/") and not value.startswith("//"):
        return _at_label_studio(value, base_url)
    if scheme in ("http", "https"):
        return _own_address(value, base_url, aliases)
    if scheme in CLOUD_SCHEMES:
        return _resolve_address(value, task, base_url)
    raise ImageError(
        "the image of a task has an address of an unknown form",
        value=shown_url(value),
        expected="/data/..., http(s)://..., data:..., or " + ", ".join(f"{name}://" for name in sorted(CLOUD_SCHEMES)),
        fix="import the image into Label Studio or use an address of one of these forms",
    )


def decode_data_uri(uri: str, max_bytes: int) -> bytes:
    """The bytes in a data URI (RFC 2397)."""
    head, comma, body = uri.partition(",")
    if len(body) > max_bytes * 4 // 3 + 4 and head.lower().endswith(";base64"):
        raise _bad_task("a data URI is too large", f"{len(body)} characters", f"at most {max_bytes} bytes")
    try:
        if not comma:
            raise ValueError("no comma")
        raw = unquote_to_bytes(body)
        if head.lower().endswith(";base64"):
            # Browsers read white space and missing padding; so do we.
            raw = b"".join(raw.split()).rstrip(b"=")
            data = base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
        else:
            data = raw
    except (binascii.Error, ValueError) as error:
        raise _bad_task(f"a data URI is malformed ({error})", shown_url(uri), "data:image/...;base64,...") from error
    if len(data) > max_bytes:
        raise _bad_task("a data URI is too large", f"{len(data)} bytes", f"at most {max_bytes} bytes")
    return data


def _at_label_studio(path: str, base_url: str) -> str:
    """An address at Label Studio, whose paths may or may not include its sub-path."""
    if not base_url:
        raise ImageError(
            "an image lies in Label Studio, whose address is not known",
            value=shown_url(path),
            expected="the address of Label Studio",
            fix="set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY for this backend",
        )
    base = urlsplit(base_url.rstrip("/"))
    path = path.replace("\\", "%5C")  # names of files may hold it; in an address it is ambiguous
    if base.path and path.startswith(base.path + "/"):
        path = path[len(base.path) :]
    return f"{base.scheme}://{base.netloc}{base.path}{path}"


def _own_address(url: str, base_url: str, aliases: Sequence[str]) -> str:
    """The same file at `base_url` when the address names this Label Studio by another name."""
    try:
        url_origin = origin(url)
    except ValueError as error:
        raise _bad_task(f"an image has a malformed address ({error})", shown_url(url), "http(s)://host/path") from error
    for alias in aliases:
        if base_url and _origin_of_alias(alias) == url_origin != origin(base_url):
            parts, sub_path = urlsplit(url), urlsplit(alias.rstrip("/")).path
            path = parts.path.removeprefix(sub_path) + (f"?{parts.query}" if parts.query else "")
            return _at_label_studio(path, base_url)
    return url


def _origin_of_alias(alias: str) -> tuple[str, str, int] | None:
    """The origin of an alias; None if it is malformed: anyone may send one with /setup, and no task may fail for it."""
    try:
        return origin(alias)
    except ValueError:
        return None


def _resolve_address(uri: str, task: Mapping[str, Any], base_url: str) -> str:
    """Label Studio's presign endpoint: 303 to a signed address, or the file itself (measured)."""
    if task.get("id") is None:
        raise _bad_task("a cloud image can only be had through its task", shown_url(uri), "a task with an id")
    encoded_uri = base64.urlsafe_b64encode(uri.encode()).decode()
    return _at_label_studio(f"/tasks/{int(task['id'])}/resolve/?fileuri={encoded_uri}", base_url)


def _bad_task(problem: str, value: object, expected: str) -> ImageError:
    return ImageError(problem, value=value, expected=expected, fix="correct the data of the task")


_SUFFIX = ".bin"
#: The folder is measured each time that 1 / this of its limit was written.
_SWEEP_SHARE = 16


class FileCache:
    """A folder of files that forgets the least recently used; shared by processes without locks.

    A file is written beside its place and renamed, so readers see whole files or none. The access time is set by
    hand (file systems do not keep it); the modification time stays the time of writing.

    Args:
        max_age_s: older files count as missing.
    """

    def __init__(self, directory: Path, *, max_bytes: int, max_age_s: float) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._unswept_bytes = max_bytes  # measure at the first write: others may have filled the folder
        directory.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> bytes | None:
        """The bytes of a key, None when they are missing or too old."""
        path = self._path(key)
        try:
            written_s = path.stat().st_mtime
            if time.time() - written_s > self._max_age_s:
                return None
            data = path.read_bytes()
            os.utime(path, (time.time(), written_s))
        except OSError:  # never there, or another process has just removed it
            return None
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes, unless they alone exceed the limit."""
        if len(data) > self._max_bytes:
            return
        with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".new-", delete=False) as file:
            file.write(data)
        Path(file.name).replace(self._path(key))
        self._unswept_bytes += len(data)
        if self._unswept_bytes * _SWEEP_SHARE >= self._max_bytes:
            self._unswept_bytes = 0
            self._sweep()

    def discard(self, key: str) -> None:
        """Forget a key."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._directory / (hashlib.sha256(key.encode()).hexdigest() + _SUFFIX)

    def _sweep(self) -> None:
        files = []
        for path in self._directory.glob(f"*{_SUFFIX}"):
            try:
                stat = path.stat()
            except OSError:
                continue  # removed by another process
            files.append((stat.st_atime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
