"""Which rays from a point pass near all corners of a growing stretch of a contour: a wedge that shrinks (Chan and Chin
1996), for all points and a block of corners at a time.

A disc around each corner must be met. Seen from a walker outside of it, a disc is an interval of directions; the wedge
is what all intervals so far have in common. Directions are slopes in the walker's own frame, whose axis points at the
first corner whose disc it is not inside of: all later admissible rays are less than a right angle away from that.

Shapes: B corners of a block; W walkers, each with a column of its own.
"""

from __future__ import annotations

import numpy as np

_STEEP = 1e18  # stands for an unbounded slope; infinity would give NaN times zero


class Wedges:
    """The wedges of W walkers.

    Attributes:
        alive: bool (W,), whether any ray is left.
    """

    def __init__(self, count: int) -> None:
        """All rays of `count` walkers."""
        self._axis_x, self._axis_y = np.zeros(count), np.zeros(count)
        self._low, self._high = np.full(count, -_STEEP), np.full(count, _STEEP)
        self._any_blank = True  # some walker was inside all discs so far, so that its frame is still to be chosen
        self.alive: np.ndarray = np.ones(count, dtype=np.bool_)

    def only(self, walkers: np.ndarray) -> None:
        """Forget all but these walkers (indices)."""
        for name in ("_axis_x", "_axis_y", "_low", "_high", "alive"):
            setattr(self, name, getattr(self, name)[walkers])

    def narrow(
        self, x: np.ndarray, y: np.ndarray, radius: np.ndarray, others: list[tuple[np.ndarray, np.ndarray]]
    ) -> list[np.ndarray]:
        """Take the next B corners.

        Args:
            x: (B, W), from the walker to the centre of each disc.
            y: likewise.
            radius: of the discs, broadcastable to (B, W).
            others: x and y (B, W) of more points that belong to the corners, from the walker.

        Returns:
            For the centres and then for each of the others, bool (B, W): whether the ray to it is in the wedge of all
            corners before its own.
        """
        outside = x * x
        outside += y * y
        outside -= radius * radius
        inside = outside <= 0
        free = self._choose_axes(inside, x, y)
        along, across = self._turned(x, y)
        low, high = self._bounds(outside, inside, along, across, radius)
        self._low, self._high = low[-1], high[-1]
        self.alive = self._low <= self._high
        admitted = []
        for ahead, aside in [(along, across), *(self._turned(*other) for other in others)]:
            low_side, high_side = low[:-1] * ahead, high[:-1] * ahead
            fits = aside >= low_side
            fits &= aside <= high_side
            fits &= ahead > 0
            if free is not None:
                fits |= free
            admitted.append(fits)
        return admitted

    def _choose_axes(self, inside: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
        """Point the frames of walkers that have none at their first corner out of reach.

        Returns:
            Bool (B, W): the corners up to that one, whose targets any ray may go to; None if all had frames.
        """
        if not self._any_blank:
            return None
        blank = (self._axis_x == 0) & (self._axis_y == 0)
        first, column = np.argmin(inside, axis=0), np.arange(inside.shape[1])
        found = blank & ~inside[first, column]
        self._axis_x[found], self._axis_y[found] = x[first, column][found], y[first, column][found]
        self._any_blank = bool((blank & ~found).any())
        last = np.where(found, first, np.where(blank, len(inside), -1))
        return np.arange(len(inside))[:, None] <= last

    def _turned(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (B, W) in the walkers' frames, scaled by the length of the axis."""
        along = x * self._axis_x
        along += y * self._axis_y
        across = y * self._axis_x
        across -= x * self._axis_y
        return along, across

    def _bounds(
        self,
        outside: np.ndarray,
        inside: np.ndarray,
        along: np.ndarray,
        across: np.ndarray,
        radius: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest slopes (B + 1, W): before the block and after each of its corners.

        A tangent that points backwards bounds nothing if its disc is on its side, and else leaves no ray.
        """
        shape = len(along) + 1, along.shape[1]
        low, high = np.empty(shape), np.empty(shape)
        low[0], high[0] = self._low, self._high
        tangent = np.sqrt(np.maximum(outside, 0.0, out=outside), out=outside)
        backwards = np.copysign(_STEEP, across)
        straight, aside = along * tangent, across * radius
        lifted, lowered = across * tangent, along * radius
        run, rise = straight - aside, lifted + lowered
        np.divide(rise, run, out=high[1:])
        np.copyto(high[1:], backwards, where=run <= 0)
        np.copyto(high[1:], _STEEP, where=inside)
        np.add(straight, aside, out=run)
        np.subtract(lifted, lowered, out=rise)
        np.divide(rise, run, out=low[1:])
        np.copyto(low[1:], backwards, where=run <= 0)
        np.copyto(low[1:], -_STEEP, where=inside)
        np.maximum.accumulate(low, axis=0, out=low)
        np.minimum.accumulate(high, axis=0, out=high)
        return low, high
