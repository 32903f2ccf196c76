"""The images of tasks: found, fetched within bounds, cached and decoded.

Shapes: H, W of the upright image.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from integration.images.cache import FileCache
from integration.images.download import Downloader, Limits, shown_url
from integration.images.ssrf_guard import AddressPolicy, origin
from integration.images.urls import decode_data_uri, image_value, locate
from integration.label_studio.auth import LabelStudioAuth
from model.images import DEFAULT_BUDGET_BYTES, ImageError, MemoryBudget, decode_image

__all__ = ["FetchSettings", "ImageError", "ImageFetcher"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How images may be fetched. The defaults are safe against hostile task data.

    Attributes:
        label_studio_url: as this machine reaches it; "" when there is none. May be private.
        label_studio_aliases: other addresses of the same Label Studio, e.g. the `hostname` of /setup.
        cache_dir: folder for downloaded files; None keeps none.
        timeout_s: for one image, everything together.
        connect_timeout_s: for one connection.
        private_hosts: hosts that may have private or loopback addresses; see `addresses.AddressPolicy`.
        ca_bundle: file of certificate authorities for https; None for the usual ones.
    """

    label_studio_url: str = ""
    api_key: str = ""
    label_studio_aliases: tuple[str, ...] = ()
    cache_dir: Path | None = None
    cache_bytes: int = 2 << 30
    cache_max_age_s: float = 86_400.0
    max_bytes: int = 64 << 20
    max_pixels: int = 80_000_000
    decoding_bytes: int = DEFAULT_BUDGET_BYTES
    timeout_s: float = 30.0
    connect_timeout_s: float = 5.0
    max_redirects: int = 5
    private_hosts: tuple[str, ...] = ()
    ca_bundle: Path | None = None

    def __repr__(self) -> str:
        return f"FetchSettings(label_studio_url={shown_url(self.label_studio_url)!r})"  # never the key


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
        limits = Limits(settings.max_bytes, settings.timeout_s, settings.connect_timeout_s, settings.max_redirects)
        self._downloader = Downloader(limits, AddressPolicy(self._private_hosts()), auth, verify)
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
