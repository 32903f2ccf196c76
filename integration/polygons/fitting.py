"""Move the vertices of a simplified chain to where its segments fit the contour best, within the certified tolerance.

Vertices on the contour make every chord of a round outline run inside of it. Here each segment becomes the line with
the least squared distance to the stretch of contour that it replaces, and each vertex the crossing of its two lines.

The two-way Hausdorff distance stays within the radii: a vertex stays within the radius of its own corner, and every
corner of a stretch within its radius of the segment. Then contour edges are covered because the tube around a segment
is convex, the segment between the feet of the stretch's ends because the stretch is connected, and what is left of it
at either end because both the vertex and the foot are near that end's corner.

Shapes: n corners of a chain; N vertices.
"""

from __future__ import annotations

import numpy as np

#: Shares of the way to the best fit that are tried, largest first; 0 is the vertex as it was, which is certified.
_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
_PARALLEL = 0.05  # sine of the angle below which two lines have no useful crossing
_NO_LENGTH = 1e-12


def fit_vertices(
    corners_px: np.ndarray,
    radii_px: np.ndarray,
    moments: np.ndarray,
    vertices_px: np.ndarray,
    spans: np.ndarray,
    *,
    closed: bool,
    size_px: tuple[float, float],
) -> np.ndarray:
    """Fit a chain's vertices.

    Args:
        radii_px: (n,), how far the chain may keep from each corner.
        moments: (6, 2 n + 1), integrals of x^2, xy, y^2, x, y, 1 along two laps, counted from the first corner (see
            `ShortcutGraph`).
        closed: whether the last corner is joined to the first; the ends of open chains stay.
        size_px: width and height of the image. Vertices stay in it, and those of corners on its border on the border.
    """
    count = len(corners_px)
    first = spans
    last = np.append(spans[1:], spans[0] + count) if closed else spans[1:]
    if not closed:
        first = spans[:-1]
    if len(first) < 2:
        return vertices_px
    normals, offsets = _lines(moments[:, last] - moments[:, first])
    offsets = offsets + normals @ corners_px[0]
    wishes = vertices_px.copy()
    before = np.roll(np.arange(len(first)), 1) if closed else np.arange(len(first) - 1)
    after = np.arange(len(first)) if closed else np.arange(1, len(first))
    moving = np.arange(len(vertices_px)) if closed else np.arange(1, len(vertices_px) - 1)
    wishes[moving] = _crossings(normals[before], offsets[before], normals[after], offsets[after], vertices_px[moving])
    corner = corners_px[spans % count]
    wishes = np.where((corner == 0) | (corner == size_px), corner, np.clip(wishes, 0, size_px))
    return _certified(corners_px, radii_px, vertices_px, wishes, spans, first, last)


def _lines(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals (N, 2) and offsets (N,) of the lines of least squares through stretches with these moments (6, N)."""
    xx, xy, yy, x, y, length = sums
    length = np.maximum(length, _NO_LENGTH)
    mean_x, mean_y = x / length, y / length
    angle = 0.5 * np.arctan2(2 * (xy / length - mean_x * mean_y), (xx / length - mean_x**2) - (yy / length - mean_y**2))
    normals = np.stack([-np.sin(angle), np.cos(angle)], axis=1)
    return normals, normals[:, 0] * mean_x + normals[:, 1] * mean_y


def _crossings(
    normals: np.ndarray, offsets: np.ndarray, others: np.ndarray, other_offsets: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """Where pairs of lines cross; for lines that are nearly parallel, the point moved halfway to either."""
    sine = normals[:, 0] * others[:, 1] - normals[:, 1] * others[:, 0]
    is_parallel = np.abs(sine) < _PARALLEL
    safe = np.where(is_parallel, 1.0, sine)
    crossing = np.stack(
        [
            (offsets * others[:, 1] - other_offsets * normals[:, 1]) / safe,
            (normals[:, 0] * other_offsets - others[:, 0] * offsets) / safe,
        ],
        axis=1,
    )
    to_first = (offsets - (normals * points).sum(axis=1))[:, None] * normals
    to_second = (other_offsets - (others * points).sum(axis=1))[:, None] * others
    return np.where(is_parallel[:, None], points + (to_first + to_second) / 2, crossing)


def _certified(
    corners_px: np.ndarray,
    radii_px: np.ndarray,
    vertices_px: np.ndarray,
    wishes_px: np.ndarray,
    spans: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
) -> np.ndarray:
    """Go as far from `vertices_px` towards `wishes_px` as the radii allow."""
    count = len(corners_px)
    lengths = last - first + 1
    segment = np.repeat(np.arange(len(first)), lengths)
    corner = (np.arange(len(segment)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + first[segment]) % count
    own_corner, own_radius = corners_px[spans % count], radii_px[spans % count]
    # A wish farther off than the radius is cut short, so that its direction is not lost.
    step = wishes_px - own_corner
    away = np.maximum(np.hypot(*step.T), _NO_LENGTH)
    wishes_px = own_corner + step * np.minimum(1, own_radius * 0.999 / away)[:, None]
    level: np.ndarray = np.zeros(len(vertices_px), dtype=np.int64)
    shares = np.array(_SHARES)
    ends = np.append(np.arange(1, len(first)), len(first) % len(vertices_px))
    while True:
        fitted: np.ndarray = vertices_px + shares[level][:, None] * (wishes_px - vertices_px)
        wrong = np.zeros(len(first), dtype=np.bool_)
        far = _distance(corners_px[corner], fitted[: len(first)][segment], fitted[ends][segment]) > radii_px[corner]
        wrong[segment[far]] = True
        movable = level < len(shares) - 1
        wrong &= movable[: len(first)] | movable[ends]
        if not wrong.any():
            return fitted
        blamed = np.zeros(len(vertices_px), dtype=np.bool_)
        blamed[np.flatnonzero(wrong)] = True
        blamed[ends[wrong]] = True
        level = np.asarray(np.minimum(level + blamed, len(shares) - 1))


def _distance(points: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Distance of each point from its segment."""
    line = ends - starts
    offset = points - starts
    share = ((offset * line).sum(axis=1) / np.maximum((line**2).sum(axis=1), _NO_LENGTH)).clip(0, 1)
    return np.asarray(np.hypot(*(offset - share[:, None] * line).T))
