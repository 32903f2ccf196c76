"""Fill rings on the pixel grid: a pixel is inside when its centre is, by the even-odd rule.

Shapes: H, W mask size; N points of a ring; E edges; K crossings of edges with pixel rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def fill_even_odd(rings_px: Sequence[np.ndarray], mask_hw: np.ndarray) -> None:
    """Set the pixels of a mask whose centres lie inside the rings.

    A segment that is passed an even number of times (the two sides of a keyhole cut) changes nothing, exactly, in
    either direction of travel. A centre on an edge counts as inside on the left and upper side of an area only.

    Args:
        rings_px: closed rings, float (N, 2) of x, y in pixel edges, the end joined to the start. Parts outside the
            mask are clipped.
        mask_hw: bool, H x W, changed in place; pixels already set stay set.
    """
    starts = np.concatenate([np.asarray(ring, dtype=np.float64) for ring in rings_px])
    ends = np.concatenate([np.roll(np.asarray(ring, dtype=np.float64), -1, axis=0) for ring in rings_px])
    rows, columns = _crossings(starts, ends, *mask_hw.shape)
    if not len(rows):
        return
    top, left = rows.min(), columns.min()
    window = mask_hw[top : rows.max() + 1, left : columns.max()]
    height, width = window.shape[0], window.shape[1] + 1  # a crossing may lie right of the last centre
    toggles = np.zeros(height * width, dtype=np.uint8)
    np.add.at(toggles, (rows - top) * width + np.minimum(columns - left, width - 1), 1)
    parity = np.add.accumulate(toggles.reshape(height, width), axis=1, dtype=np.uint8) & 1
    window |= parity[:, : window.shape[1]].view(np.bool_)


def _crossings(starts: np.ndarray, ends: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row, and first column whose centre lies right of the edge, for each crossing of an edge and a row: 2 x (K,)."""
    downwards = starts[:, 1:] <= ends[:, 1:]
    upper, lower = np.where(downwards, starts, ends), np.where(downwards, ends, starts)
    first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    span = lower - upper
    share = (rows + 0.5 - upper[edge, 1]) / span[edge, 1]
    x = upper[edge, 0] + share * span[edge, 0]
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    return rows, columns
