"""Every mode and orientation an image file may have, and files that are none."""

from __future__ import annotations

import io
import pickle
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.images import MAX_SCANS, ImageError, decode_image

RED = (200, 30, 10)
#: A dark 6 x 4 image with one bright corner, top left.
CORNER = np.zeros((4, 6, 3), dtype=np.uint8)
CORNER[0, 0] = 255


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, max_pixels: int = 10_000) -> np.ndarray:
    rgb = decode_image(data, name="it", max_pixels=max_pixels)
    assert rgb.dtype == np.uint8
    assert rgb.ndim == 3
    assert rgb.shape[2] == 3
    return rgb


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decoded(encoded(Image.fromarray(pixels), kind, **options)), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "JPEG2000", "AVIF"])
def test_other_formats(kind: str) -> None:
    data = encoded(Image.new("RGB", (16, 16), RED), kind)
    assert np.abs(decoded(data).astype(int) - RED).max() < 20


@pytest.mark.parametrize(
    ("orientation", "bright"),  # row and column of the corner as it is seen
    [(1, (0, 0)), (2, (0, 5)), (3, (3, 5)), (4, (3, 0)), (5, (0, 0)), (6, (0, 3)), (7, (5, 3)), (8, (5, 0))],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation(orientation: int, bright: tuple[int, int], kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = decoded(encoded(Image.fromarray(CORNER), kind, exif=exif))
    assert rgb.shape[:2] == ((4, 6) if orientation < 5 else (6, 4))
    assert np.unravel_index(rgb[..., 0].argmax(), rgb.shape[:2]) == bright


def test_broken_exif_is_ignored() -> None:
    data = encoded(Image.fromarray(CORNER), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffgarbage")
    assert decoded(data).shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (*RED, 255)), RED),
        (Image.new("RGBA", (2, 2), (*RED, 0)), (255, 255, 255)),
        (Image.new("LA", (2, 2), (40, 0)), (255, 255, 255)),
        (Image.new("P", (2, 2), 0), None),
        (Image.fromarray(np.full((2, 2), 0x1234, dtype=np.uint16)), (0x12, 0x12, 0x12)),
        (Image.fromarray(np.full((2, 2), 65535, dtype=np.uint16)), (255, 255, 255)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_modes(image: Image.Image, expected: tuple[int, int, int] | None) -> None:
    rgb = decoded(encoded(image))
    if expected is not None:
        assert np.array_equal(rgb, np.full((2, 2, 3), expected))


@pytest.mark.parametrize(
    ("gray", "expected"),
    [
        ([[0.0, 255.0]], [0, 255]),
        ([[0.0, 65535.0]], [0, 255]),
        ([[0.0, 0.5, 1.0]], [0, 127, 255]),
        ([[-1.0, 1.0]], [0, 255]),
        ([[3.0, 3.0]], [3, 3]),
        ([[float("nan"), 255.0]], [0, 255]),
    ],
)
def test_floating_gray(gray: list[list[float]], expected: list[int]) -> None:
    image = Image.fromarray(np.array(gray, dtype=np.float32))
    assert decoded(encoded(image, "TIFF"))[0, :, 0].tolist() == expected


def test_32_bit_gray() -> None:
    image = Image.fromarray(np.array([[0, 1 << 20]], dtype=np.int32))
    assert decoded(encoded(image, "TIFF"))[0, :, 0].tolist() == [0, 255]


def test_cmyk() -> None:
    rgb = decoded(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(rgb.astype(int) - (255, 0, 0)).max() < 10


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decoded(encoded(image, transparency=0))[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(data)[0, 0].tolist() == [255, 0, 0]


def test_too_many_pixels_are_refused_before_decoding() -> None:
    data = encoded(Image.new("1", (3000, 2000)))
    with pytest.raises(ImageError, match=r"3000 x 2000 = 6000000 pixels, expected at most 10000"):
        decoded(data)
    assert decoded(data, 6_000_000).shape == (2000, 3000, 3)


def test_a_decompression_bomb() -> None:
    small = encoded(Image.new("1", (1, 1)))
    claim = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + small[24:29]
    huge = small[:12] + claim + zlib.crc32(claim).to_bytes(4, "big") + small[33:]
    with pytest.raises(ImageError, match=r"too many pixels: .*3600000000 pixels"):
        decoded(huge, max_pixels=80_000_000)


PNG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not an image"),
        (b"<!DOCTYPE html><title>Log in</title>", "a login page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"%PDF-1.7", "a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not an image"),
        (b"plain text", "starting with b'plain text'"),
        (PNG[:600], "damaged"),
        (PNG[:20], "damaged"),
    ],
)
def test_files_that_are_no_images(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decoded(data)
    assert caught.value.fix
    assert caught.value.expected


@given(st.integers(0, len(PNG) - 1), st.integers(0, 255), st.integers(0, len(PNG)))
def test_damaged_files_decode_or_are_refused(at: int, byte: int, end: int) -> None:
    data = (PNG[:at] + bytes([byte]) + PNG[at + 1 :])[:end]
    try:
        decoded(data)
    except ImageError as error:
        assert error.fix  # noqa: PT017


def test_errors_cross_process_borders() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a", value=1, expected="b", fix="c")))
    assert str(error) == "a: got 1, expected b; c"
    assert (error.what, error.value, error.expected, error.fix) == ("a", "1", "b", "c")


@pytest.mark.parametrize(("extra", "is_refused"), [(100, False), (300, True)])
def test_a_jpeg_of_many_scans_would_take_hours(extra: int, is_refused: bool) -> None:
    """Each scan of 33 bytes goes over all pixels once more."""
    buffer = io.BytesIO()
    Image.new("L", (64, 64)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    data = data[:-2] + scan * extra + data[-2:]
    if not is_refused:
        assert decode_image(data, name="x", max_pixels=10**6).shape == (64, 64, 3)
        return
    with pytest.raises(ImageError, match=rf"got 30\d scans of 64 x 64 pixels, expected at most {MAX_SCANS}"):
        decode_image(data, name="x", max_pixels=10**6)
