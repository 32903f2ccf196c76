"""Label Studio's BitmaskLabels (`value.imageDataURL`): a PNG whose painted pixels are the opaque ones.

Shapes: H, W mask size.
"""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
from PIL import Image

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
