"""Painted masks in Label Studio's two codes, exact both ways: BrushLabels' run-length code, BitmaskLabels' PNG.

The run-length code (`value.format == "rle"`) is the bit stream of the JavaScript package @thi.ng/rle-pack over an RGBA
image, row by row: 32 bits count of values, 5 bits word size - 1, four times 4 bits run size - 1, then blocks: 1 bit "is
a run", 2 bits which run size, that many bits of length - 1, and one word (run) or length words (literal). A mask is the
alpha channel. In the PNG (`value.imageDataURL`) painted pixels are the opaque ones.

Shapes: H, W mask size; T blocks; B bits.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

_WORD_BITS = 8
_RUN_BITS = np.array([3, 4, 8, 16])
_HEADER_BITS = 32 + 5 + 4 * 4
_MAX_RUN = 1 << 16
_MAX_VALUES = 1 << 32
_OPAQUE = 128  # brush strokes have soft edges; half opaque counts as painted


class BrushError(ValueError):
    """Numbers that are not Label Studio's run-length code, or not of the image in question."""


def encode_brush_mask(mask_hw: np.ndarray) -> list[int]:
    """Encode a mask for `value.rle`."""
    if mask_hw.ndim != 2 or mask_hw.size * 4 >= _MAX_VALUES:
        raise BrushError(f"a brush mask is height x width with less than 2**30 pixels, got {mask_hw.shape}")
    lengths, values = _runs(mask_hw)
    size_class = np.searchsorted(1 << _RUN_BITS, lengths)
    run_bits = _RUN_BITS[size_class]
    words = ((1 << 2 | size_class) << run_bits | (lengths - 1)) << _WORD_BITS | values
    header = mask_hw.size * 4
    for bits, number in [(5, _WORD_BITS - 1), *((4, bits - 1) for bits in _RUN_BITS.tolist())]:
        header = header << bits | number
    bits = np.concatenate([_to_bits([header], [_HEADER_BITS]), _to_bits(words, 3 + run_bits + _WORD_BITS)])
    return np.packbits(bits).tolist()


def decode_brush_mask(rle: Sequence[int], height: int, width: int) -> np.ndarray:
    """Decode `value.rle` of an image of the given size.

    Args:
        rle: bytes as ints. May hold runs and literals in any mix, as the editor writes them.

    Returns:
        Bool, H x W: True where alpha is at least 128.
    """
    stream = _BitReader(_as_bytes(rle))
    count = stream.read(32)
    if count != height * width * 4:
        raise BrushError(
            f"the brush code holds {count} values, expected {height} x {width} x 4 = {height * width * 4}; "
            "original_width and original_height must be those of the painted image"
        )
    word_bits = stream.read(5) + 1
    run_bits = [stream.read(4) + 1 for _ in range(4)]
    flat = _read_blocks(stream, count, word_bits, run_bits)
    return flat.reshape(height, width, 4)[:, :, 3] >= _OPAQUE


def _as_bytes(rle: Sequence[int]) -> bytes:
    try:
        return bytes(rle) if isinstance(rle, list | tuple) else bytes(list(rle))
    except (ValueError, TypeError) as error:
        raise BrushError(f"a brush region's rle must be a list of whole numbers 0..255: {error}") from error


def _runs(mask_hw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and values (0 or 255) of the runs of the RGBA image, none longer than 2**16: 2 x (T,)."""
    flat = np.ascontiguousarray(mask_hw, dtype=np.uint8).ravel()
    if not flat.size:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.append(starts, flat.size)) * 4
    pieces = -(-lengths // _MAX_RUN)
    values = np.repeat(flat[starts].astype(np.int64) * 255, pieces)
    cut = np.full(len(values), _MAX_RUN, dtype=np.int64)
    last = np.cumsum(pieces) - 1
    cut[last] = lengths - (pieces - 1) * _MAX_RUN
    return cut, values


def _to_bits(numbers: Sequence[int] | np.ndarray, widths: Sequence[int] | np.ndarray) -> np.ndarray:
    """The lowest `widths` bits of each number, highest first, one after the other: (B,) of 0 and 1."""
    widths = np.asarray(widths, dtype=np.int64)
    ends = np.cumsum(widths)
    shift = np.repeat(ends, widths) - 1 - np.arange(widths.sum())
    return (np.repeat(np.asarray(numbers, dtype=np.int64), widths) >> shift & 1).astype(np.uint8)


def _read_blocks(stream: _BitReader, count: int, word_bits: int, run_bits: list[int]) -> np.ndarray:
    flat = np.zeros(count, dtype=np.uint8)
    at = 0
    while at < count:
        is_run, size_class = stream.read(1), stream.read(2)
        length = stream.read(run_bits[size_class]) + 1
        if at + length > count:
            raise BrushError(f"the brush code overruns its image: {at + length} values of {count}")
        if is_run:
            flat[at : at + length] = stream.read(word_bits) & 0xFF
        else:
            flat[at : at + length] = [stream.read(word_bits) & 0xFF for _ in range(length)]
        at += length
    return flat


class _BitReader:
    """Reads whole numbers, highest bit first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, bits: int) -> int:
        end = self._at + bits
        if end > len(self._data) * 8:
            raise BrushError(f"the brush code is cut off after {len(self._data)} bytes; save the region again")
        window = self._data[self._at // 8 : (end + 7) // 8]
        self._at = end
        return int.from_bytes(window, "big") >> (-end % 8) & ((1 << bits) - 1)


_PREFIX = "data:image/png;base64,"


class BitmaskError(ValueError):
    """A value that is no PNG in a data URL, or not of the image in question."""


def encode_bitmask(mask_hw: np.ndarray) -> str:
    """Encode a mask (bool, H x W) for `value.imageDataURL`: opaque black on nothing, as the editor saves it."""
    alpha = Image.fromarray(mask_hw.astype(np.uint8) * 255)
    picture = Image.merge("LA", (Image.new("L", alpha.size), alpha))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return _PREFIX + base64.b64encode(file.getvalue()).decode()


def decode_bitmask(url: object, height: int, width: int) -> np.ndarray:
    """Decode `value.imageDataURL` of an image of the given size.

    Returns:
        Bool, H x W: as in the editor, where the PNG is not wholly transparent; in a PNG without transparency, where it
        is not black.
    """
    if not isinstance(url, str) or not url.startswith("data:image/") or ";base64," not in url[:64]:
        raise BitmaskError(f"imageDataURL is {str(url)[:40]!r}, expected a PNG as {_PREFIX}...")
    try:
        # Browsers read white space and missing padding; so do we.
        text = "".join(url.partition(",")[2].split()).rstrip("=")
        file = io.BytesIO(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
        with Image.open(file, formats=["PNG"]) as picture:
            if picture.size != (width, height):
                raise BitmaskError(f"the bitmask is {picture.size[0]} x {picture.size[1]}, expected {width} x {height}")
            has_alpha = picture.has_transparency_data
            pixels = np.asarray(picture.convert("RGBA" if has_alpha else "L"))
    except (binascii.Error, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise BitmaskError(f"the bitmask is no readable PNG: {error}") from error
    return np.asarray((pixels[:, :, 3] if has_alpha else pixels) > 0)
