"""Pictures for load: each is another one, so that nothing is answered from memory."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

WIDTH_PX, HEIGHT_PX = 384, 288


def noisy_pictures(count: int) -> list[bytes]:
    """PNG files of noise with two flat rectangles."""
    files = []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(90, 120, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
        for _ in range(2):
            top, left = int(rng.integers(0, 180)), int(rng.integers(0, 280))
            pixels[top : top + 90, left : left + 90] = rng.integers(0, 255, 3)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    return files
