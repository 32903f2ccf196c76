"""Exact contours of a mask: the cracks between pixels, as simple closed rings on the pixel lattice.

Shapes: N corners of a ring; H, W mask size. A lattice point (x, y) is the top left corner of pixel [y, x], so a pixel
covers [x, x + 1] x [y, y + 1]. Rings hold corners only (no collinear points) and are not closed by a repeated point.
Outer rings have a positive shoelace area in (x right, y down), rings of holes a negative one.
"""

from __future__ import annotations

import numpy as np


def trace_rings(mask_hw: np.ndarray) -> list[np.ndarray]:
    """Trace every boundary of a mask.

    Args:
        mask_hw: bool, H x W.

    Returns:
        Int64 arrays (N, 2) of (x, y) corners. Each ring is simple: where pixels touch only diagonally, rings share a
        point but none passes through it twice, so a ring is the boundary between two 4-connected areas.
    """
    corners = _Corners(mask_hw)
    if not len(corners.points_xy):
        return []
    return [corners.points_xy[np.array(nodes)] for nodes in _cycles(corners.successors(), corners.twins())]


class _Corners:
    """The corners of all contours: one node each, two where pixels touch diagonally (a saddle).

    Corners of one lattice row, in order, pair up to the horizontal edges of that row; columns likewise. That makes
    linking them a matter of sorting, without a walk over pixels.
    """

    def __init__(self, mask_hw: np.ndarray) -> None:
        padded = np.pad(mask_hw, 1).view(np.uint8)
        above, below = padded[:-1], padded[1:]
        quad = above[:, :-1] | above[:, 1:] << 1 | below[:, :-1] << 2 | below[:, 1:] << 3
        # A corner's four pixels are neither all equal nor split along a straight line: bits 0 (top left), 1 (top
        # right), 2, 3 (bottom) with an odd count, or one of the two saddles.
        y, x = np.nonzero(_IS_CORNER[quad])
        kind = quad[y, x]
        saddle = (kind == _SADDLE_DOWN) | (kind == _SADDLE_UP)
        copies = 1 + saddle
        self.points_xy = np.repeat(np.stack([x, y], axis=1), copies, axis=0)
        self._kind = np.repeat(kind, copies)
        first = np.cumsum(copies) - copies
        # Nodes of a saddle: the first ends the edge that comes from the left, the second starts the one to the right.
        self._second = np.zeros(len(self._kind), dtype=bool)
        self._second[first[saddle] + 1] = True
        self._saddle_first = first[saddle]

    def twins(self) -> dict[int, int]:
        """Each node of a saddle, with the other node of the same point."""
        pairs = [(int(node), int(node) + 1) for node in self._saddle_first]
        return dict(pairs) | {b: a for a, b in pairs}

    def successors(self) -> list[int]:
        """The next node of each node, with the mask on the right-hand side as seen on screen."""
        successor = np.empty(len(self._kind), dtype=np.int64)
        # Rows: nodes are in raster order already. The mask lies below an edge that goes right.
        left, right = np.arange(0, len(self._kind), 2), np.arange(1, len(self._kind), 2)
        self._link(successor, left, right, forward=(self._kind[left] & 8) > 0)
        # Columns: at a saddle the node that owns the upper edge comes first.
        owns_lower = self._second ^ (self._kind == _SADDLE_UP)
        column_order = np.lexsort((owns_lower, self.points_xy[:, 1], self.points_xy[:, 0]))
        upper, lower = column_order[0::2], column_order[1::2]
        forward = (self._kind[upper] & 4) > 0  # the mask lies left of an edge that goes down
        self._link(successor, upper, lower, forward=forward)
        return successor.tolist()

    @staticmethod
    def _link(successor: np.ndarray, start: np.ndarray, end: np.ndarray, *, forward: np.ndarray) -> None:
        successor[np.where(forward, start, end)] = np.where(forward, end, start)


_SADDLE_DOWN, _SADDLE_UP = 0b1001, 0b0110  # mask pixels on the falling / rising diagonal
_IS_CORNER = np.array([bin(q).count("1") in (1, 3) or q in (_SADDLE_DOWN, _SADDLE_UP) for q in range(16)])


def _cycles(successor: list[int], twins: dict[int, int]) -> list[list[int]]:
    seen = bytearray(len(successor))
    cycles = []
    for start in range(len(successor)):
        if seen[start]:
            continue
        cycle, node = [], start
        while not seen[node]:
            seen[node] = 1
            cycle.append(node)
            node = successor[node]
        cycles += _split_at_twins(cycle, twins) if twins else [cycle]
    return cycles


def _split_at_twins(cycle: list[int], twins: dict[int, int]) -> list[list[int]]:
    """Cut a walk wherever it comes back to a point, so that no ring touches itself (OGC validity)."""
    loops: list[list[int]] = []
    stack: list[int] = []
    position: dict[int, int] = {}
    for node in cycle:
        twin = twins.get(node)
        if twin in position:
            cut = position[twin]
            loop = stack[cut:]
            loops.append(loop)
            del stack[cut:]
            for gone in loop:
                position.pop(gone, None)
        if twin is not None:
            position[node] = len(stack)
        stack.append(node)
    return [*loops, stack]
