"""The memory that decoding an image takes, told from its header, and a budget that all decoding at once shares.

A file of 700 bytes can announce 80 megapixels, and the bytes for each of them depend on format and mode: a limit of
pixels alone bounds neither one image nor several at once.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

#: Serves any JPEG, PNG, WebP or TIFF of 80 megapixels, one at a time, and several smaller ones at once.
DEFAULT_BUDGET_BYTES = 1536 << 20
#: Edge of the pieces in which a decoded image becomes an array, and the bytes that one of their pixels takes meanwhile.
PIECE_PX = 1024
_PIECE_BYTES = 40
_RGB_BYTES = 3
#: Of one pixel of a Pillow image; all other modes take 4.
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
#: What decoders hold beside Pillow's image, in bytes a pixel and in bytes a pixel and band; tests/model measures it.
#: JPEG keeps all coefficients of progressive files, JPEG 2000 works on 32-bit integers.
_FORMAT_BYTES = {"WEBP": (12.5, 0.0), "AVIF": (16.0, 0.0), "JPEG": (0.0, 2.0), "JPEG2000": (0.0, 5.5)}
_TIFF_BITS, _TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 258, 322, 323


def decoding_bytes(image: Image.Image) -> int:
    """Estimate the most memory that an opened image and its RGB array take together while it is decoded."""
    pixels = image.width * image.height
    per_pixel = _MODE_BYTES.get(image.mode, 4)
    fixed, per_band = _FORMAT_BYTES.get(image.format or "", (0.5, 0.0))
    total = pixels * (per_pixel + fixed + per_band * len(image.getbands()) + _RGB_BYTES)
    total += min(pixels, PIECE_PX**2) * _PIECE_BYTES
    if image.format == "TIFF":
        total += max(_tiff_buffer_bytes(image), pixels * per_pixel)  # or the copy that is turned upright
    return math.ceil(total)


def _tiff_buffer_bytes(image: Image.Image) -> float:
    """The buffer of one strip, which may be the whole image, or of one tile, which may be larger than the image."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = tags.get(_TIFF_BITS, 8)
    per_pixel = (sum(bits) if isinstance(bits, tuple) else bits * len(image.getbands())) / 8
    tile = tags.get(_TIFF_TILE_WIDTH, 0) * tags.get(_TIFF_TILE_LENGTH, 0)
    return max(tile, image.width * image.height) * per_pixel


class MemoryBudget:
    """Bytes that several threads share; whoever would exceed them waits, in the order of asking.

    Attributes:
        limit_bytes: of all together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._used = 0
        self._changed = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def hold(self, size_bytes: int, *, timeout_s: float | None = None) -> Iterator[None]:
        """Hold bytes while the block runs, after waiting for them.

        Raises:
            ValueError: more than there will ever be.
            TimeoutError: they did not come free within `timeout_s`.
        """
        if size_bytes > self.limit_bytes:
            raise ValueError(f"{size_bytes} bytes of {self.limit_bytes}")
        begun = time.monotonic()
        if not self._turn.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise TimeoutError
        try:
            with self._changed:
                left_s = None if timeout_s is None else timeout_s - (time.monotonic() - begun)
                if not self._changed.wait_for(lambda: self._used + size_bytes <= self.limit_bytes, left_s):
                    raise TimeoutError
                self._used += size_bytes
        finally:
            self._turn.release()
        try:
            yield
        finally:
            with self._changed:
                self._used -= size_bytes
                self._changed.notify_all()
