"""One region's geometry as a mask: outlines in percent of the image, and Label Studio's two codes for painted masks.

Coordinates are percent of the upright, unrotated image: the editor's rotate button only sets `image_rotation`
(measured), so it is ignored here.

Painted masks are exact both ways: BrushLabels' run-length code, BitmaskLabels' PNG. The run-length code
(`value.format == "rle"`) is the bit stream of the JavaScript package @thi.ng/rle-pack over an RGBA image, row by row:
32 bits count of values, 5 bits word size - 1, four times 4 bits run size - 1, then blocks: 1 bit "is a run", 2 bits
which run size, that many bits of length - 1, and one word (run) or length words (literal). A mask is the alpha channel.
In the PNG (`value.imageDataURL`) painted pixels are the opaque ones.

Shapes: H, W mask size; N points; T blocks; B bits.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

#: Decimals of a pixel kept: percent with 8 decimals come back to the very lattice points they were made of.
_DECIMALS = 4
GEOMETRIES = ("polygon", "brush", "bitmask", "ellipse", "vector", "rectangle")


class ShapeError(ValueError):
    """A region that is no mask; the text says why."""


def mask_of(
    kind: str, value: Mapping[str, Any], width: int, height: int, painted_hw: tuple[int, int] | None
) -> np.ndarray:
    """The pixels (bool, H x W) that a region of one of the `GEOMETRIES` covers, at least one.

    Args:
        painted_hw: size of the image that it was drawn on, where the region says so.

    Raises:
        ShapeError: it covers none, or cannot be read.
    """
    if kind in ("brush", "bitmask"):
        mask_hw = _painted_mask(kind, value, painted_hw or (height, width), (height, width))
    else:
        if kind == "polygon":
            points = _polygon(value)
        elif kind == "vector":
            points = _vector(value)
        elif kind == "ellipse":
            points = _ellipse(value, width, height)
        else:
            points = _rectangle(value, width, height)
        # Imported here, so that the API, which reads painted prompts, needs neither scipy nor shapely.
        from integration.polygons.contours import Polygon
        from integration.polygons.convert import polygons_to_mask

        ring = np.round(points * np.array([width, height]) / 100, _DECIMALS)
        mask_hw = polygons_to_mask([Polygon(ring)], height, width)
    if not mask_hw.any():
        raise ShapeError("it covers no pixel")
    return mask_hw


def _painted_mask(
    kind: str, value: Mapping[str, Any], painted_hw: tuple[int, int], size_hw: tuple[int, int]
) -> np.ndarray:
    """The painted pixels (H, W); what was painted on another size of the image is scaled, nearest pixels."""
    if kind == "brush" and value.get("format") != "rle":
        raise ShapeError(f"brush format {value.get('format')!r} is not 'rle'")

    def decode(height: int, width: int) -> np.ndarray:
        if kind == "brush":
            return decode_brush_mask(value.get("rle") or [], height, width)
        return decode_bitmask(value.get("imageDataURL"), height, width)

    try:
        return decode(*size_hw)
    except ShapeError:
        if painted_hw == size_hw:
            raise
    (rows, columns), (height, width) = painted_hw, size_hw
    mask_hw = decode(rows, columns)
    return mask_hw[np.arange(height) * rows // height][:, np.arange(width) * columns // width]


def _polygon(value: Mapping[str, Any]) -> np.ndarray:
    """Percent points (N, 2) of a polygon."""
    points = _numbers(value.get("points") or [])
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 3:
        raise ShapeError("a polygon needs at least 3 points of x and y")
    if value.get("closed") is False:
        raise ShapeError("the polygon is not closed: it was never finished")
    return points


def _rectangle(value: Mapping[str, Any], width: int, height: int) -> np.ndarray:
    """Percent corners (4, 2) of a box, turned clockwise about its top left corner by `rotation` degrees."""
    numbers = _numbers([value.get(key, 0) for key in ("x", "y", "width", "height", "rotation")])
    x, y, box_width, box_height, rotation = numbers.tolist()
    size_px = np.array([width, height])
    corners = np.array([[0, 0], [box_width, 0], [box_width, box_height], [0, box_height]])
    return np.array([x, y]) + (corners * size_px) @ _clockwise(rotation) / size_px


def _clockwise(degrees: float) -> np.ndarray:
    """The matrix (2, 2) that turns rows of x and y."""
    angle = math.radians(degrees)
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


#: Points of an ellipse's outline: at 1000 px radius they lie 0.05 px inside it.
_ELLIPSE_POINTS = 360


def _ellipse(value: Mapping[str, Any], width: int, height: int) -> np.ndarray:
    """Percent points (N, 2) of an ellipse, turned clockwise about its centre by `rotation` degrees.

    `radiusX` is in percent of the width, `radiusY` in percent of the height.
    """
    numbers = _numbers([value.get(key, 0) for key in ("x", "y", "radiusX", "radiusY", "rotation")])
    x, y, radius_x, radius_y, rotation = numbers.tolist()
    angles = np.linspace(0, 2 * math.pi, _ELLIPSE_POINTS, endpoint=False)
    points_px = np.stack([np.cos(angles) * radius_x * width, np.sin(angles) * radius_y * height], axis=1) / 100
    return np.array([x, y]) + points_px @ _clockwise(rotation) * 100 / np.array([width, height])


#: Straight edges that stand for one Bezier curve.
_BEZIER_POINTS = 32


def _vector(value: Mapping[str, Any]) -> np.ndarray:
    """Percent points (N, 2) of a closed path of straight edges and cubic Bezier curves.

    A curve leaves a vertex towards its `controlPoint2` and arrives at the next from its `controlPoint1`.
    """
    vertices = value.get("vertices") or value.get("points") or []
    if value.get("closed") is not True:
        raise ShapeError("the vector is not closed: it encloses nothing")
    if not isinstance(vertices, list):
        raise ShapeError("a vector needs a list of vertices")
    points = _numbers([[v.get("x"), v.get("y")] if isinstance(v, Mapping) else v for v in vertices])
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 2:
        raise ShapeError("a vector needs at least 3 vertices of x and y, or 2 with Bezier curves")
    path = [points[:1]]
    for number, point in enumerate(points):
        follower = (number + 1) % len(points)
        ends = vertices[number], vertices[follower]
        leaving, arriving = _control(ends[0], "controlPoint2"), _control(ends[1], "controlPoint1")
        if leaving is None and arriving is None:
            path.append(points[follower][None])
            continue
        p1, p2 = point if leaving is None else leaving, points[follower] if arriving is None else arriving
        t = np.linspace(0, 1, _BEZIER_POINTS + 1)[1:, None]
        path.append(
            (1 - t) ** 3 * point + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * points[follower]
        )
    outline = np.concatenate(path)[:-1]
    if len(outline) < 3:
        raise ShapeError("a vector needs at least 3 vertices of x and y, or 2 with Bezier curves")
    return outline


def _control(vertex: object, name: str) -> np.ndarray | None:
    """A control point (2,) of a Bezier vertex; None where it has none."""
    if not isinstance(vertex, Mapping) or not vertex.get("isBezier"):
        return None
    point = vertex.get(name)
    if not isinstance(point, Mapping) or (vertex.get("disconnected") and point.get("x") is None):
        return None
    return _numbers([point.get("x"), point.get("y")])


def extent_of(entry: Mapping[str, Any], width: int, height: int) -> np.ndarray | None:
    """The pixels (H, W) that a region without a readable mask must lie in; None if its entry does not tell."""
    value = entry.get("value")
    value = value if isinstance(value, Mapping) else {}
    vertices = value.get("vertices") or value.get("points")
    try:
        if vertices:
            points = _numbers([[v.get("x"), v.get("y")] if isinstance(v, Mapping) else v for v in vertices])
        elif "radiusX" in value:
            points = _ellipse(value, width, height)
        elif "width" in value and "height" in value:
            points = _rectangle(value, width, height)
        else:
            return None
    except (ShapeError, TypeError, AttributeError):
        return None
    if points.ndim != 2 or points.shape[1:] != (2,):
        return None
    corners = np.clip(points, 0, 100) * np.array([width, height]) / 100
    (left, top), (right, bottom) = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    mask_hw = np.zeros((height, width), bool)
    mask_hw[top:bottom, left:right] = True
    return mask_hw


#: Larger coordinates, in percent of the image, are no drawing.
_LARGEST_PERCENT = 1e6


def _numbers(values: object) -> np.ndarray:
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ShapeError(f"its coordinates are not numbers: {error}") from error
    wrong_numbers = numbers[~(np.abs(numbers) <= _LARGEST_PERCENT)]
    if wrong_numbers.size:
        raise ShapeError(f"a coordinate is {wrong_numbers.flat[0]:g}, expected percent of the image")
    return numbers


_WORD_BITS = 8
_RUN_BITS = np.array([3, 4, 8, 16])
_HEADER_BITS = 32 + 5 + 4 * 4
_MAX_RUN = 1 << 16
_MAX_VALUES = 1 << 32
_OPAQUE = 128  # brush strokes have soft edges; half opaque counts as painted


def encode_brush_mask(mask_hw: np.ndarray) -> list[int]:
    """Encode a mask for `value.rle`."""
    if mask_hw.ndim != 2 or mask_hw.size * 4 >= _MAX_VALUES:
        raise ShapeError(f"a brush mask is height x width with less than 2**30 pixels, got {mask_hw.shape}")
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
        raise ShapeError(
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
        raise ShapeError(f"a brush region's rle must be a list of whole numbers 0..255: {error}") from error


def _runs(mask_hw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and values (0 or 255) of the runs of the RGBA image, none longer than 2**16: 2 x (T,)."""
    flat = np.ascontiguousarray(mask_hw, dtype=np.uint8).ravel()
    if not flat.size:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.append(starts, flat.size)) * 4
    pieces = -(-lengths // _MAX_RUN)
    values = np.repeat(flat[starts].astype(np.int64) * 255, pieces)
    piece_lengths = np.full(len(values), _MAX_RUN, dtype=np.int64)
    last_pieces = np.cumsum(pieces) - 1
    piece_lengths[last_pieces] = lengths - (pieces - 1) * _MAX_RUN
    return piece_lengths, values


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
            raise ShapeError(f"the brush code overruns its image: {at + length} values of {count}")
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
            raise ShapeError(f"the brush code is cut off after {len(self._data)} bytes; save the region again")
        window = self._data[self._at // 8 : (end + 7) // 8]
        self._at = end
        return int.from_bytes(window, "big") >> (-end % 8) & ((1 << bits) - 1)


_PREFIX = "data:image/png;base64,"


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
        raise ShapeError(f"imageDataURL is {str(url)[:40]!r}, expected a PNG as {_PREFIX}...")
    try:
        # Browsers read white space and missing padding; so do we.
        text = "".join(url.partition(",")[2].split()).rstrip("=")
        file = io.BytesIO(base64.b64decode(text + "=" * (-len(text) % 4), validate=True))
        with Image.open(file, formats=["PNG"]) as picture:
            if picture.size != (width, height):
                raise ShapeError(f"the bitmask is {picture.size[0]} x {picture.size[1]}, expected {width} x {height}")
            has_alpha = picture.has_transparency_data
            pixels = np.asarray(picture.convert("RGBA" if has_alpha else "L"))
    except (binascii.Error, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ShapeError(f"the bitmask is no readable PNG: {error}") from error
    return np.asarray((pixels[:, :, 3] if has_alpha else pixels) > 0)
