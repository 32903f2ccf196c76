"""Read image files as RGB arrays, as the annotator's browser shows them; for training, evaluation and serving.

A file of 700 bytes can announce 80 megapixels, and the bytes for each of them depend on format and mode: a limit of
pixels alone bounds neither one image nor several at once. So the memory for decoding is estimated from the header, and
all decoding at the same time shares a budget.

Shapes: H, W of the upright image.
"""

from __future__ import annotations

import io
import math
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from model.errors import ImageError

#: Formats that are decoded; none starts another program or reads other files. Pillow opens MPO under JPEG only.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")


def decode_image(data: bytes, *, name: str, max_pixels: int, budget: MemoryBudget | None = None) -> np.ndarray:
    """Decode the first frame of an image file.

    EXIF orientation is applied, as Label Studio's editor does (measured): percent coordinates are of the
    upright image. Transparent parts become white. 16-bit gray keeps its upper 8 bits, as browsers draw it.

    Args:
        max_pixels: images with more are refused before their pixels are decoded.
        budget: memory that this shares with other decoding at the same time, for which it waits; None: no limit.

    Returns:
        uint8, H x W x 3, RGB.

    Raises:
        ImageError: not an image, damaged, too large, of an unknown format, or more than the whole budget.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # about sizes (the limit is ours) and metadata
            return _decode(data, name, max_pixels, budget)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error), max_pixels) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that can be decoded",
            value=_looks_like(data),
            expected=f"one of {', '.join(FORMATS)}",
            fix="convert the file, or check that the address gives the image itself",
        ) from error
    # Pillow's decoders raise whatever their parsing of a damaged file runs into.
    except Exception as error:
        raise ImageError(
            f"{name} is damaged",
            value=f"{type(error).__name__}: {error}",
            expected="a complete image file",
            fix="upload the image again",
        ) from error


#: Most pixels of pictures on disk: larger ones are refused before their pixels are decoded.
MAX_PIXELS = 250_000_000
_ORIENTATION = 0x0112
#: EXIF orientation -> what brings the stored pixels upright; turns are counter-clockwise.
_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}


def read_image(path: Path) -> np.ndarray:
    """Decode an image file on disk; see `decode_image`.

    Raises:
        FileNotFoundError: it is not there.
        ImageError: not an image, damaged or too large.
    """
    return decode_image(path.read_bytes(), name=str(path), max_pixels=MAX_PIXELS)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Size and orientation from the beginning of an image file.

    Attributes:
        stored_hw: height and width as stored. orientation: of EXIF, 1 where there is none.
    """

    stored_hw: tuple[int, int]
    orientation: int = 1

    @property
    def upright_hw(self) -> tuple[int, int]:
        """Height and width as shown."""
        height, width = self.stored_hw
        return (width, height) if self.orientation >= 5 else (height, width)


def read_header(path: Path) -> ImageHeader:
    """Read size and orientation without decoding pixels.

    Raises:
        FileNotFoundError: it is not there.
        ImageError: not an image.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            width, height = image.size
            orientation = _orientation(image)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ImageError(
            f"{path} is not an image that can be decoded",
            value=f"{type(error).__name__}: {error}",
            expected=f"one of {', '.join(FORMATS)}",
            fix="convert or replace the file",
        ) from error
    return ImageHeader((height, width), orientation)


def turn_upright(mask_hw: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an array (H, W) of the stored pixels as EXIF turns the picture."""
    turns, is_mirrored = _TURNS.get(orientation, (0, False))
    turned_hw = np.rot90(mask_hw, turns)
    return np.ascontiguousarray(turned_hw[:, ::-1] if is_mirrored else turned_hw)


def _decode(data: bytes, name: str, max_pixels: int, budget: MemoryBudget | None) -> np.ndarray:
    Image.init()  # registers the rarer formats; Pillow may be built without some of them
    formats = [name for name in FORMATS if name in Image.OPEN]
    with Image.open(io.BytesIO(data), formats=formats) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large(name, f"{width} x {height} = {width * height} pixels", max_pixels)
        _check_scans(data, image, name)
        size_bytes = decoding_bytes(image)
        if budget is not None and size_bytes > budget.limit_bytes:
            raise ImageError(
                f"{name} takes too much memory to decode",
                value=f"{size_bytes >> 20} MiB for {width} x {height} pixels of {image.format} {image.mode}",
                expected=f"at most {budget.limit_bytes >> 20} MiB",
                fix="scale the image down or save it as JPEG or PNG, or raise the service's memory for decoding "
                "(TRANSFINER_MAX_DECODING_MIB)",
            )
        with nullcontext() if budget is None else budget.hold(size_bytes):
            image.load()
            return _upright_rgb(image)


#: A progressive JPEG goes over the whole image once a scan: a file of some MB, all scans, would take hours. Encoders
#: write about ten.
MAX_SCANS = 200
_SCAN = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e][\x01-\x04]")


def _check_scans(data: bytes, image: Image.Image, name: str) -> None:
    if image.format == "JPEG" and (scans := sum(1 for _ in _SCAN.finditer(data))) > MAX_SCANS:
        raise ImageError(
            f"{name} has too many scans",
            value=f"{scans} scans of {image.width} x {image.height} pixels",
            expected=f"at most {MAX_SCANS}",
            fix="save the image anew",
        )


def _orientation(image: Image.Image) -> int:
    """Of EXIF; 1 where it is missing, unknown or unreadable: browsers show such an image as it is stored."""
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1
    return orientation if orientation in _TURNS else 1


def _upright_rgb(image: Image.Image) -> np.ndarray:
    """Convert a loaded image piece by piece, each written where it belongs upright: no copy of the whole is made."""
    width, height = image.size
    orientation = _orientation(image)
    rgb = np.empty((*ImageHeader((height, width), orientation).upright_hw, 3), np.uint8)
    turns, is_mirrored = _TURNS.get(orientation, (0, False))
    as_stored = np.rot90(rgb[:, ::-1] if is_mirrored else rgb, -turns)
    to_rgb = _converter(image)
    for left, top, right, bottom in _pieces(width, height):
        as_stored[top:bottom, left:right] = to_rgb(image.crop((left, top, right, bottom)))
    return rgb


def _pieces(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    for top in range(0, height, PIECE_PX):
        for left in range(0, width, PIECE_PX):
            yield left, top, min(left + PIECE_PX, width), min(top + PIECE_PX, height)


def _converter(image: Image.Image) -> Callable[[Image.Image], np.ndarray]:
    """The function that turns pieces of an image into uint8 arrays of h x w x 3, or h x w x 1 where it is gray."""
    if image.mode.startswith("I;16"):
        return lambda piece: (np.asarray(piece).astype(np.uint16) >> 8).astype(np.uint8)[..., None]
    if image.mode in ("I", "F"):
        low, high = _gray_range(image)
        return lambda piece: _to_8_bit(piece, low, high)[..., None]
    if image.has_transparency_data:
        return _on_white
    return lambda piece: np.asarray(piece.convert("RGB"))


def _on_white(piece: Image.Image) -> np.ndarray:
    rgba = piece.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def _gray_range(image: Image.Image) -> tuple[float, float]:
    """Black and white of a 32-bit gray image: those of 8 or 16 bits where its values fit, else its own range."""
    extremes = [
        extreme
        for box in _pieces(*image.size)
        for values in [_finite(image.crop(box))]
        for extreme in (values.min(), values.max())
    ]
    low, high = min(extremes), max(extremes)
    if low >= 0 and 1 < high <= 65535:
        return 0.0, 255.0 if high <= 255 else 65535.0
    return float(low), float(high)


def _to_8_bit(piece: Image.Image, low: float, high: float) -> np.ndarray:
    return np.clip((_finite(piece) - low) * 255 / max(high - low, 1e-12), 0, 255).astype(np.uint8)


def _finite(piece: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(piece).astype(np.float64), posinf=0.0, neginf=0.0)


def _too_large(name: str, value: str, max_pixels: int) -> ImageError:
    return ImageError(
        f"{name} has too many pixels",
        value=value,
        expected=f"at most {min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))} pixels",
        fix="scale the image down, or raise the service's limit of pixels (TRANSFINER_MAX_IMAGE_MEGAPIXELS)",
    )


def _looks_like(data: bytes) -> str:
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page (a login page?)"
    if start.startswith((b"<?xml", b"<svg")):
        return "XML or SVG"
    if start.startswith(b"%pdf"):
        return "a PDF"
    return f"{len(data)} bytes starting with {data[:12]!r}"


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
    per_pixel_extra, per_band = _FORMAT_BYTES.get(image.format or "", (0.5, 0.0))
    total = pixels * (per_pixel + per_pixel_extra + per_band * len(image.getbands()) + _RGB_BYTES)
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
    """A number of bytes that several threads share; a thread that would exceed it waits, first come first served.

    Attributes:
        limit_bytes: of all together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._used_bytes = 0
        self._condition = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def hold(self, size_bytes: int, *, timeout_s: float | None = None) -> Iterator[None]:
        """Hold bytes while the block runs, after waiting for them.

        Raises:
            ValueError: more than `limit_bytes`.
            TimeoutError: they were not free within `timeout_s`.
        """
        if size_bytes > self.limit_bytes:
            raise ValueError(f"{size_bytes} bytes of {self.limit_bytes}")
        start_s = time.monotonic()
        if not self._turn.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise TimeoutError
        try:
            with self._condition:
                left_s = None if timeout_s is None else timeout_s - (time.monotonic() - start_s)
                if not self._condition.wait_for(lambda: self._used_bytes + size_bytes <= self.limit_bytes, left_s):
                    raise TimeoutError
                self._used_bytes += size_bytes
        finally:
            self._turn.release()
        try:
            yield
        finally:
            with self._condition:
                self._used_bytes -= size_bytes
                self._condition.notify_all()
