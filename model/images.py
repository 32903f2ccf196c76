"""Image files to RGB arrays, as the annotator's browser shows them; training, evaluation and serving read with this.

Shapes: H, W of the upright image.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from model.image_error import ImageError

#: Formats that are decoded; none starts another program or reads other files. Pillow opens MPO under JPEG only.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")


def decode_image(data: bytes, *, name: str, max_pixels: int) -> np.ndarray:
    """Decode the first frame of an image file.

    EXIF orientation is applied, as Label Studio's editor does (measured): percent coordinates are of the
    upright image. Transparent parts become white. 16-bit gray keeps its upper 8 bits, as browsers draw it.

    Args:
        data: the file.
        name: for error messages.
        max_pixels: images with more are refused before their pixels are decoded.

    Returns:
        uint8, H x W x 3, RGB.

    Raises:
        ImageError: not an image, damaged, too large or of an unknown format.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # about sizes (the limit is ours) and metadata
            return _decode(data, name, max_pixels)
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


#: Of pictures on disk: larger ones are refused before their pixels are decoded.
MAX_PIXELS = 250_000_000
_ORIENTATION = 0x0112
#: EXIF orientation -> what brings the stored pixels upright; turns are counter-clockwise.
_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file on disk; see `decode_image`.

    Raises:
        FileNotFoundError: it is not there.
        ImageError: not an image, damaged or too large.
    """
    return decode_image(path.read_bytes(), name=str(path), max_pixels=max_pixels)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the beginning of an image file says.

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
            try:
                orientation = int(image.getexif().get(_ORIENTATION, 1))
            except Exception:
                orientation = 1  # unreadable EXIF data: shown as stored
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ImageError(
            f"{path} is not an image that can be decoded",
            value=f"{type(error).__name__}: {error}",
            expected=f"one of {', '.join(FORMATS)}",
            fix="convert or replace the file",
        ) from error
    return ImageHeader((height, width), orientation if orientation in _TURNS else 1)


def turn_upright(mask_hw: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an array (H, W) of the stored pixels as EXIF turns the picture."""
    turns, mirrored = _TURNS.get(orientation, (0, False))
    turned = np.rot90(mask_hw, turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)


def _decode(data: bytes, name: str, max_pixels: int) -> np.ndarray:
    Image.init()  # registers the rarer formats; Pillow may be built without some of them
    known = [name for name in FORMATS if name in Image.OPEN]
    with Image.open(io.BytesIO(data), formats=known) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large(name, f"{width} x {height} = {width * height} pixels", max_pixels)
        image.load()
        return np.array(_to_rgb(_upright(image)), dtype=np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image  # unreadable EXIF data: browsers show such an image as it is stored


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(gray: np.ndarray) -> np.ndarray:
    """32-bit gray has no agreed white: what looks like 8 or 16 bits is read so, the rest by its own range."""
    gray = np.nan_to_num(gray.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = gray.min(), gray.max()
    if low >= 0 and 1 < high <= 65535:
        low, high = 0.0, 255.0 if high <= 255 else 65535.0
    return np.clip((gray - low) * 255 / max(high - low, 1e-12), 0, 255).astype(np.uint8)


def _too_large(name: str, value: str, max_pixels: int) -> ImageError:
    return ImageError(
        f"{name} has too many pixels",
        value=value,
        expected=f"at most {min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))} pixels",
        fix="scale the image down, or raise the limit of pixels",
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
