"""A large mask with a long, wriggly outline, to time polygons on: no photograph is needed for that."""

from __future__ import annotations

import numpy as np

_WAVES = 400
_ROUGHNESS = 0.6  # the amplitude of wave k falls like k to minus this


def coastline_mask(height: int = 3000, width: int = 4000, *, seed: int = 0) -> np.ndarray:
    """An island that fills most of the image; at 4000 x 3000 its outline has about 20,000 corners.

    Returns:
        Bool, height x width.
    """
    random = np.random.default_rng(seed)
    waves = np.arange(3, _WAVES)
    angle = np.linspace(-np.pi, np.pi, 8192)
    phase, amplitude = (random.uniform(0, 2 * np.pi, len(waves)), random.normal(size=len(waves)) / waves**_ROUGHNESS)
    radius = 0.36 + 0.016 * (amplitude[:, None] * np.cos(waves[:, None] * angle + phase[:, None])).sum(axis=0)
    radius[-1] = radius[0]
    y, x = np.ogrid[:height, :width]
    down = (y + 0.5) / height - 0.5
    right = (x + 0.5) / width - 0.5
    return np.hypot(down, right) < np.interp(np.arctan2(down, right), angle, radius)
