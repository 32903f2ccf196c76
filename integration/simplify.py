"""Simplify the chains that outline masks, within a certified tolerance and without changing the topology.

A chain is a closed ring of corners, or the open piece of a ring between two junctions. Every corner has its own radius,
at first the tolerance. Where simplified rings cross, touch wrongly, turn over or collapse, the radii nearby are halved
and the chain is solved again; at radius zero it is the exact contour, which is valid, so this ends.

Shapes: n corners of a chain; N vertices of a ring; S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely

from integration.fewest import fewest_vertices
from integration.shortcuts import ShortcutGraph

_SMALLEST_SHARE = 1 / 20  # of the tolerance; smaller radii become zero


def signed_area(ring: np.ndarray) -> float:
    """Shoelace area of a ring (N, 2): positive for exteriors, negative for holes."""
    x, y = np.asarray(ring, dtype=np.float64).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


class Chain:
    """One stretch of contour and its current simplification.

    Attributes:
        corners: float (n, 2).
        closed: whether the last corner is joined to the first.
        vertices: float (N, 2), the simplification.
        spans: int (N,), the corner that each vertex belongs to, ascending around the chain.
    """

    def __init__(self, corners: np.ndarray, tolerance_px: float, *, closed: bool) -> None:
        self.corners, self.closed = np.asarray(corners, dtype=np.float64), closed
        self._tolerance_px = tolerance_px
        self._radii = np.full(len(corners), float(tolerance_px))
        if not closed:
            self._radii[[0, -1]] = 0.0  # junctions stay
        self._solve()

    def tighten(self, first: int, last: int) -> bool:
        """Halve the radii of corners `first` .. `last`; past the end they go on around. False if all are zero."""
        at = np.arange(first, last + 1) % len(self.corners)
        if not self._radii[at].any():
            return False
        radii = self._radii[at] / 2
        self._radii[at] = np.where(radii < self._tolerance_px * _SMALLEST_SHARE, 0.0, radii)
        self._stale = True
        return True

    def tighten_all(self) -> bool:
        """Halve all radii, or take the width of a thin ring if that is less."""
        widest = (
            abs(signed_area(self.corners)) / np.abs(np.diff(self.corners, axis=0)).sum()
            if self.closed
            else np.inf
        )
        if self.closed and widest < self._radii.max():
            self._radii = np.minimum(self._radii, 2 * widest)
        return self.tighten(0, len(self.corners) - 1)

    def refresh(self) -> None:
        """Solve again if a radius changed."""
        if self._stale:
            self._solve()

    def segment_corners(self, index: int) -> tuple[int, int]:
        """First and last corner that segment `index` of the simplification replaces."""
        first, last = int(self.spans[index]), int(self.spans[(index + 1) % len(self.spans)])
        return first, last if last > first else last + len(self.corners)

    def _solve(self) -> None:
        self._stale = False
        if not self._radii.any():
            self.vertices, self.spans = self.corners, np.arange(len(self.corners))
            return
        graph = ShortcutGraph(self.corners, self._radii, closed=self.closed)
        nodes = fewest_vertices(graph)
        spans = graph.corner_of(nodes)
        nodes = np.roll(nodes, -int(np.argmin(spans)))
        self.vertices, self.spans = graph.points_px(nodes), graph.corner_of(nodes)


@dataclass(frozen=True, slots=True)
class Ring:
    """A ring as chains in walking order, each forwards or backwards."""

    chains: tuple[tuple[Chain, bool], ...]
    is_hole: bool

    def points_px(self) -> np.ndarray:
        """The simplified ring (N, 2)."""
        if self.chains[0][0].closed:
            chain, forward = self.chains[0]
            return chain.vertices if forward else chain.vertices[::-1]
        parts = [chain.vertices if forward else chain.vertices[::-1] for chain, forward in self.chains]
        return np.concatenate([part[:-1] for part in parts])

    def segments(self) -> list[tuple[Chain, int]]:
        """The chain, and the index of the chain's segment, for each segment of the ring."""
        found = []
        for chain, forward in self.chains:
            count = len(chain.vertices)
            order = range(count if chain.closed else count - 1)
            if not forward:
                order = range(count - 2, -1, -1)
            indices = list(order)
            if chain.closed and not forward:
                indices.append(count - 1)
            found += [(chain, index) for index in indices]
        return found


@dataclass(slots=True)
class Outline:
    """The rings of one mask: for each part its exterior, then its holes."""

    parts: list[list[Ring]] = field(default_factory=list)

    def points_px(self) -> list[list[np.ndarray]]:
        """Simplified rings of each part."""
        return [[ring.points_px() for ring in part] for part in self.parts]


def settle(outlines: Sequence[Outline], disjoint: bool = False) -> None:
    """Tighten and solve chains until every outline is valid and keeps its topology.

    Args:
        outlines: of the masks; they may share chains.
        disjoint: whether no two masks overlap, so that segments of different outlines must not cross either.
    """
    pending = list(outlines)
    while True:
        for outline in pending:
            _settle_one(outline)
        if not disjoint or len(outlines) < 2:
            return
        crossed = _crossed_segments([ring for o in outlines for part in o.parts for ring in part], "crosses")
        if not _tighten(crossed):
            return
        pending = list(outlines)


def _settle_one(outline: Outline) -> None:
    rings = [ring for part in outline.parts for ring in part]
    chains = {id(chain): chain for ring in rings for chain, _ in ring.chains}.values()
    while True:
        for chain in chains:
            chain.refresh()
        wrong = [ring for ring in rings if not _keeps_sense(ring)]
        if wrong:
            for ring in wrong:
                for chain, _ in ring.chains:
                    chain.tighten_all()
            continue
        parts = outline.points_px()
        shape = shapely.MultiPolygon([shapely.Polygon(part[0], part[1:]) for part in parts])
        if shape.is_valid:
            return
        if _tighten(_crossed_segments(rings, "crosses")) or _tighten(_crossed_segments(rings, "intersects")):
            continue
        if not sum(chain.tighten_all() for chain in chains):
            raise AssertionError(f"exact contours are not valid: {shapely.is_valid_reason(shape)}")


def _keeps_sense(ring: Ring) -> bool:
    points = ring.points_px()
    return len(points) >= 3 and (signed_area(points) < 0) == ring.is_hole and signed_area(points) != 0


def _tighten(segments: list[tuple[Chain, int]]) -> bool:
    spans = [(chain, *chain.segment_corners(index)) for chain, index in segments]
    return sum(chain.tighten(first, last) for chain, first, last in spans) > 0


def _crossed_segments(rings: list[Ring], predicate: str) -> list[tuple[Chain, int]]:
    """Segments that meet one they are not joined to; each once."""
    owners: list[tuple[Chain, int]] = []
    ends: list[np.ndarray] = []
    joined: list[tuple[int, int]] = []
    seen: dict[tuple[int, int], int] = {}
    for ring in rings:
        points = ring.points_px()
        numbers = []
        for index, owner in enumerate(ring.segments()):
            key = (id(owner[0]), owner[1])
            if key not in seen:
                seen[key] = len(owners)
                owners.append(owner)
                ends.append(np.stack([points[index], points[(index + 1) % len(points)]]))
            numbers.append(seen[key])
        joined += zip(numbers, numbers[1:] + numbers[:1], strict=True)
    lines = shapely.linestrings(np.array(ends))
    neighbours = {frozenset(pair) for pair in joined}
    pairs = shapely.STRtree(lines).query(lines, predicate=predicate).T.tolist()
    met = {number for a, b in pairs if a < b and frozenset((a, b)) not in neighbours for number in (a, b)}
    return [owners[number] for number in sorted(met)]
