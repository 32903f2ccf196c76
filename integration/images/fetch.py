"""The images of tasks: found, fetched within bounds, cached and decoded.

Shapes: H, W of the upright image.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from integration.images.download import Downloader, FetchSettings, shown_url
from integration.images.ssrf_guard import AddressPolicy, origin
from integration.images.urls import decode_data_uri, image_value, locate
from integration.label_studio.auth import LabelStudioAuth
from model.images import ImageError, MemoryBudget, decode_image

__all__ = ["FetchSettings", "ImageError", "ImageFetcher"]

log = logging.getLogger(__name__)


_SUFFIX = ".bin"
#: The folder is measured after this share of the limit was written.
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
        verify = str(settings.ca_bundle) if settings.ca_bundle else True
        self._base_url = settings.label_studio_url.rstrip("/")
        if auth is None and self._base_url:
            auth = LabelStudioAuth(self._base_url, settings.api_key, verify=verify)
        self._downloader = Downloader(settings, AddressPolicy(self._private_hosts()), auth, verify)
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
        cached = self._cache.get(address) if self._cache is not None else None
        if cached is not None:
            return cached
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
