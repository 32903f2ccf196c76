"""Which straight lines may replace which stretch of a contour: the arcs of the shortcut graph.

A contour is a chain of n corners; corner i has a radius r_i, the distance the simplified line may keep from it. Around
every corner there are K candidate vertices: the corner itself and, on short chains, a point on the outer side of the
turn, a radius away. (On real masks leaving the contour everywhere would save one vertex in twenty, for twice the time.)

The segment from candidate u of corner i to candidate v of corner j may replace corners i..j when every corner between
is within its radius of the segment. Then the segment and that stretch have a two-way Hausdorff distance of at most the
largest radius: contour edges between covered corners are covered because the tube around a segment is convex, and the
projection of the connected stretch covers the segment from end to end.

A corner is near a segment exactly if it is near both rays, the one from u through v and the one from v through u (Chan
and Chin 1996), and the rays from u that pass near all corners of a growing stretch form a shrinking wedge. The second
ray rejects less than one arc in a thousand, so arcs are proposed by the first alone, for all candidates at once and a
block of corners at a time, and `overreach_px` judges those that are used.

Shapes: n corners; K candidates; W walkers, one a candidate; B corners of a block; A arcs. Node i * K + a is candidate a
of corner i; in closed chains nodes from n * K on are the same ring again. Points are complex numbers x + y i: one
multiplication turns many of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_OFFSETS = np.array([0.0, -0.999])  # of the radius, along the bisector towards the inner side of the turn
_LONG_CHAIN = 60  # corners; the candidates of longer chains are on the contour only
_BLOCK_CELLS = 2048  # walkers x corners handled at once: small enough for the processor's cache
_BLOCK = 16  # but never fewer corners than this
_CHUNK = 512  # corners whose walkers go together
_STEEP = 1e18  # stands for an unbounded slope; infinity would give NaN times zero
_SLACK = 1e-12
_TO_COMPLEX = np.array([1, 1j])


@dataclass(frozen=True, slots=True)
class Arcs:
    """Arcs (A,) of the shortcut graph, ordered by source node.

    Attributes:
        source: nodes 0 .. n K - 1.
        target: nodes, larger than the source; past the end of a closed chain they go on counting.
        square_px3: integral, along the replaced stretch, of the squared distance to the arc's line.
    """

    source: np.ndarray
    target: np.ndarray
    square_px3: np.ndarray


class ShortcutGraph:
    """Candidates and proposed arcs of one chain."""

    def __init__(self, corners_px: np.ndarray, radii_px: np.ndarray, *, closed: bool) -> None:
        """Take corners (n, 2), no two neighbours alike, and radii (n,) >= 0; `closed` joins the last to the first."""
        self.corners = np.asarray(corners_px, dtype=np.float64) @ _TO_COMPLEX
        self.radii, self.closed = radii_px, closed
        self.nodes = self._candidates(_OFFSETS if len(self.corners) <= _LONG_CHAIN else _OFFSETS[:1])
        self.k = len(self.nodes) // len(self.corners)

    def points_px(self, nodes: np.ndarray) -> np.ndarray:
        """Coordinates (A, 2) of nodes (A,)."""
        points = self.nodes[np.asarray(nodes) % len(self.nodes)]
        return np.stack([points.real, points.imag], axis=1)

    def corner_of(self, nodes: np.ndarray) -> np.ndarray:
        """The corner (A,) each node belongs to."""
        return (np.asarray(nodes) // self.k) % len(self.corners)

    def arcs(self) -> Arcs:
        """The arcs that the ray from their source admits."""
        found = [self._arcs_from(start) for start in range(0, len(self.corners), _CHUNK)]
        source, target = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Arcs(source, target, self._squares(source, target))

    def overreach_px(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """How much farther than its radius some corner between is from each arc (A,); <= 0 where the arc is valid."""
        first, count = source // self.k + 1, target // self.k - source // self.k - 1
        arc = np.repeat(np.arange(len(source)), count)
        corner = np.arange(len(arc)) - np.repeat(np.cumsum(count) - count, count) + first[arc]
        corner %= len(self.corners)
        start = self.nodes[source]
        line = self.nodes[target % len(self.nodes)] - start
        to_corner = (self.corners[corner] - start[arc]) * line.conj()[arc]
        length = np.abs(line)[arc]
        share = np.clip(to_corner.real / np.maximum(length**2, _SLACK), 0, 1)
        distance = np.abs(self.corners[corner] - start[arc] - share * line[arc])
        excess = np.full(len(source), -np.inf)
        np.maximum.at(excess, arc, distance - self.radii[corner])
        return excess

    def _candidates(self, offsets: np.ndarray) -> np.ndarray:
        edges = np.roll(self.corners, -1) - self.corners
        edges /= np.maximum(
            np.abs(edges), _SLACK
        )  # zero from the end of an open chain back to its start, if a loop
        bisector = np.roll(edges, 1) - edges
        bisector /= np.maximum(np.abs(bisector), _SLACK)
        return (self.corners[:, None] + (self.radii * bisector)[:, None] * offsets).ravel()

    def _arcs_from(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and target nodes of the arcs from one chunk of corners."""
        count = len(self.corners)
        steps = count - 1 if self.closed else count - 1 - first
        wedges = _Wedges(self, first, min(count, first + _CHUNK))
        found = list(wedges.arcs(steps))
        source, target = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(
            (source - first * self.k).astype(np.uint16), kind="stable"
        )  # 16 bits: a radix sort
        return source[order], target[order]

    def _squares(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Integral of the squared distance to each arc's line: the imaginary part in a frame along the arc."""
        start = self.nodes[source]
        line = self.nodes[target % len(self.nodes)] - start
        line /= np.maximum(np.abs(line), _SLACK)
        one, z, zz, norm = self._moments(source // self.k, target // self.k)
        squares = (zz - 2 * start * z + start * start * one) * line.conj() ** 2
        norms = norm - 2 * (start.conj() * z).real + (start.real**2 + start.imag**2) * one
        return np.maximum((norms - squares.real) / 2, 0.0)

    def _moments(self, first: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
        """Integrals of 1, z, z^2 and |z|^2 along the chain between corners."""
        p, q = self.corners, np.roll(self.corners, -1)
        length = np.abs(q - p)
        norm = (p * p.conj() + q * q.conj() + (p * q.conj() + p.conj() * q) / 2).real / 3
        sums = []
        for each in (np.ones(len(p)), (p + q) / 2, (p * p + p * q + q * q) / 3, norm):
            lap = each * length
            prefix = np.concatenate([[0], np.cumsum(np.concatenate([lap, lap]))])
            sums.append(prefix[last] - prefix[first])
        return sums


class _Wedges:
    """For W walkers: the slopes, in the walker's own frame, of the rays that pass near all corners so far.

    A walker's frame is the direction to the first corner whose disc it is not inside of; all later admissible rays
    are less than a right angle away from that, so slopes order them.
    """

    def __init__(self, graph: ShortcutGraph, first: int, stop: int) -> None:
        """One walker for each candidate of corners `first` .. `stop` - 1."""
        self._graph, self._first = graph, first
        self._points = graph.nodes[first * graph.k : stop * graph.k]
        self._home = np.repeat(np.arange(first, stop), graph.k)
        count = len(self._home)
        self._frame = np.zeros(count, dtype=np.complex128)
        self._low, self._high = np.full(count, -_STEEP), np.full(count, _STEEP)

    def arcs(self, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Walk on from corner to corner, at most `steps`; yield sources and targets (A,) of the arcs met."""
        alive, step = np.arange(len(self._home)), 1
        while step <= steps and len(alive):
            block = np.arange(step, min(step + max(_BLOCK, _BLOCK_CELLS // len(alive)), steps + 1))
            low, high = self._narrowed(alive, block)
            yield self._admitted(alive, block, low[:-1], high[:-1])
            self._low[alive], self._high[alive] = low[-1], high[-1]
            alive = alive[low[-1] <= high[-1]]
            step += len(block)

    def _narrowed(self, alive: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds (B + 1, W) of the wedges: before the block and after each of its corners."""
        low, high = np.empty((len(block) + 1, len(alive))), np.empty((len(block) + 1, len(alive)))
        low[0], high[0] = self._low[alive], self._high[alive]
        self._tangents(
            alive, (self._home[alive] + block[:, None]) % len(self._graph.corners), low[1:], high[1:]
        )
        return np.maximum.accumulate(low, axis=0, out=low), np.minimum.accumulate(high, axis=0, out=high)

    def _admitted(
        self, alive: np.ndarray, block: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Arcs from living walkers to the candidates of the block whose ray is inside the wedge before them."""
        open_cells = np.flatnonzero(low <= high)
        step, walker = np.divmod(open_cells, len(alive))
        low, high = low.ravel()[open_cells, None], high.ravel()[open_cells, None]
        source = alive[walker]
        home = source + self._first * self._graph.k
        target = ((home // self._graph.k + block[step]) * self._graph.k)[:, None] + np.arange(self._graph.k)
        nodes = self._graph.nodes
        ray = nodes[target % len(nodes)] - nodes[home][:, None]
        ray *= self._frame[source].conj()[:, None]
        along, across = ray.real, ray.imag
        keep = (across >= low * along - _SLACK) & (across <= high * along + _SLACK) & (along > 0)
        keep |= high - low == 2 * _STEEP  # no corner was out of reach yet
        if not self._graph.closed:
            keep &= target < len(nodes)
        row, column = np.nonzero(keep)
        return home[row], target[row, column]

    def _tangents(self, alive: np.ndarray, at: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
        """Fill in the slopes (B, W) of the two tangents from each walker to the disc around each corner."""
        to_corner = self._graph.corners[at] - self._points[alive]
        radius = self._graph.radii[at]
        square = to_corner.real**2 + to_corner.imag**2 - radius * radius
        inside = square <= _SLACK
        self._choose_frames(alive, inside, to_corner)
        to_corner *= self._frame[alive].conj()
        turn = np.empty_like(to_corner)
        np.sqrt(np.maximum(square, 0.0, out=square), out=turn.real)
        turn.imag = radius
        _upper_slope(to_corner * turn, to_corner.imag, upper)
        mirrored = to_corner.conj()
        _upper_slope(mirrored * turn, mirrored.imag, lower)
        np.negative(lower, out=lower)
        np.copyto(upper, _STEEP, where=inside)
        np.copyto(lower, -_STEEP, where=inside)

    def _choose_frames(self, alive: np.ndarray, inside: np.ndarray, to_corner: np.ndarray) -> None:
        columns = np.flatnonzero(self._frame[alive] == 0)
        if not len(columns):
            return
        first = np.argmin(inside[:, columns], axis=0)
        outside = ~inside[first, columns]
        columns, first = columns[outside], first[outside]
        self._frame[alive[columns]] = to_corner[first, columns]


def _upper_slope(tangent: np.ndarray, across: np.ndarray, slope: np.ndarray) -> None:
    """Fill in the slopes of upper tangents; one that points backwards bounds nothing if its disc lies above."""
    np.copyto(slope, np.where((tangent.imag > 0) | (across > 0), _STEEP, -_STEEP))
    np.divide(tangent.imag, tangent.real, out=slope, where=tangent.real > 0)
