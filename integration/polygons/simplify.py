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

from integration.polygons.fitting import fit_vertices
from integration.polygons.min_vertex_path import fewest_vertices
from integration.polygons.shortcut_graph import ShortcutGraph

_SMALLEST_SHARE = 1 / 20  # of the tolerance; smaller radii become zero
_NO_AREA_PX = 1e-9  # overlaps up to this are rounding
_ROUNDING_PX = 1e-9


def signed_area(ring: np.ndarray) -> float:
    """Shoelace area of a ring (N, 2): positive for exteriors, negative for holes."""
    x, y = np.asarray(ring).T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1]) / 2


class Chain:
    """One stretch of contour and its current simplification.

    Attributes:
        vertices: float (N, 2), the simplification.
        spans: int (N,), the corner that each vertex belongs to, ascending around the chain.
    """

    def __init__(
        self, corners: np.ndarray, tolerance_px: float, *, closed: bool, fit_in_px: tuple[float, float] | None = None
    ) -> None:
        """Take corners (n, 2).

        Args:
            fit_in_px: width and height of the image, to move vertices to where the segments fit the contour best;
                None: vertices stay on the contour.
        """
        self._fit_in_px = fit_in_px
        self.corners, self.closed = np.asarray(corners, dtype=np.float64), closed
        self._tolerance_px = tolerance_px
        self._radii = np.full(len(corners), float(tolerance_px))
        if not closed:
            self._radii[[0, -1]] = 0.0  # junctions stay
        if fit_in_px is not None:
            # An outline that touches the border of the image keeps touching it, where it does.
            self._radii[((self.corners == 0) | (self.corners == fit_in_px)).any(axis=1)] = 0.0
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
        widest = abs(signed_area(self.corners)) / np.abs(np.diff(self.corners, axis=0)).sum() if self.closed else np.inf
        if self.closed and widest < self._radii.max():
            self._radii = np.minimum(self._radii, 2 * widest)
        return self.tighten(0, len(self.corners) - 1)

    def refresh(self) -> bool:
        """Solve again if a radius changed; whether one did."""
        stale = self._stale
        if stale:
            self._solve()
        return stale

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
        least = int(nodes.argmin())
        nodes = np.concatenate([nodes[least:], nodes[:least]])
        self.vertices, self.spans = graph.points_px(nodes), graph.corner_of(nodes)
        if self._fit_in_px is not None:
            self.vertices = fit_vertices(
                self.corners,
                self._radii,
                graph.moments(),
                self.vertices,
                self.spans,
                closed=self.closed,
                size_px=self._fit_in_px,
            )


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
        kept = []
        for chain, forward in self.chains:
            count = len(chain.vertices)
            order = range(count if chain.closed else count - 1)
            if not forward:
                order = range(count - 2, -1, -1)
            indices = list(order)
            if chain.closed and not forward:
                indices.append(count - 1)
            kept += [(chain, index) for index in indices]
        return kept


@dataclass(slots=True)
class Outline:
    """The rings of one mask: for each part its exterior, then its holes."""

    parts: list[list[Ring]] = field(default_factory=list)

    def rings(self) -> list[Ring]:
        """All rings of all parts."""
        return [ring for part in self.parts for ring in part]

    def shape(self) -> shapely.Polygon | shapely.MultiPolygon:
        """The simplified mask."""
        if len(self.parts) == 1 and len(self.parts[0]) == 1:  # most masks; building is half of the check's time
            return shapely.polygons(shapely.linearrings(self.parts[0][0].points_px()))
        return shapely.MultiPolygon([shapely.Polygon(part[0], part[1:]) for part in self.points_px()])

    def points_px(self) -> list[list[np.ndarray]]:
        """Simplified rings of each part."""
        return [[ring.points_px() for ring in part] for part in self.parts]


def simplify_outlines(outlines: Sequence[Outline], disjoint: bool = False) -> None:
    """Tighten and solve chains until every outline is valid and keeps its topology.

    Args:
        outlines: of the masks; they may share chains.
        disjoint: whether no two masks overlap, so that segments of different outlines must not cross either.
    """
    while True:
        solved = sum([_settle_one(outline) for outline in outlines])  # one outline may upset another it shares with
        if len(outlines) < 2:
            return
        if disjoint and _part_overlaps(outlines):
            continue
        if not solved:
            return


def _part_overlaps(outlines: Sequence[Outline]) -> bool:
    """Tighten the segments at which outlines overlap; False if none do."""
    shapes = np.array([outline.shape() for outline in outlines])
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    common = shapely.intersection(shapes[first], shapes[second])
    changed = False
    for a, b, region in zip(first, second, common, strict=True):
        if a < b and region.area > _NO_AREA_PX:
            changed = True
            rings = [*outlines[a].rings(), *outlines[b].rings()]
            owners, lines, _ = _segments(rings)
            touched = np.flatnonzero(shapely.dwithin(lines, region, _ROUNDING_PX))
            if not _tighten([owners[number] for number in touched]):
                _tighten_all(rings)
    return changed


def _settle_one(outline: Outline) -> int:
    """Make one outline valid; how many chains had to be solved again."""
    rings = outline.rings()
    chains = {id(chain): chain for ring in rings for chain, _ in ring.chains}.values()
    solved = 0
    while True:
        solved += sum([chain.refresh() for chain in chains])
        wrong = [ring for ring in rings if not _keeps_sense(ring)]
        if wrong:
            _tighten_all(wrong)
            continue
        shape = outline.shape()
        if shapely.is_valid(shape):
            return solved
        if _tighten(_crossed_segments(rings, "crosses")) or _tighten(_crossed_segments(rings, "intersects")):
            continue
        if not _tighten_all(rings):
            raise AssertionError(f"exact contours are not valid: {shapely.is_valid_reason(shape)}")


def _tighten_all(rings: list[Ring]) -> bool:
    return sum([chain.tighten_all() for ring in rings for chain, _ in ring.chains]) > 0


def _keeps_sense(ring: Ring) -> bool:
    points = ring.points_px()
    area_px = signed_area(points)
    return len(points) >= 3 and (area_px < 0) == ring.is_hole and area_px != 0


def _tighten(segments: list[tuple[Chain, int]]) -> bool:
    spans = [(chain, *chain.segment_corners(index)) for chain, index in segments]
    return sum(chain.tighten(first, last) for chain, first, last in spans) > 0


def _crossed_segments(rings: list[Ring], predicate: str) -> list[tuple[Chain, int]]:
    """Segments that meet one they are not joined to; each once."""
    owners, lines, joined = _segments(rings)
    pairs = shapely.STRtree(lines).query(lines, predicate=predicate).T.tolist()
    met = {number for a, b in pairs if a < b and frozenset((a, b)) not in joined for number in (a, b)}
    return [owners[number] for number in sorted(met)]


def _segments(rings: list[Ring]) -> tuple[list[tuple[Chain, int]], np.ndarray, set[frozenset[int]]]:
    """Each segment once: chain and index, line string (S,); and which of them follow each other in a ring."""
    owners: list[tuple[Chain, int]] = []
    ends: list[np.ndarray] = []
    joined: set[frozenset[int]] = set()
    number_of: dict[tuple[int, int], int] = {}
    for ring in rings:
        points = ring.points_px()
        numbers = []
        for index, owner in enumerate(ring.segments()):
            key = (id(owner[0]), owner[1])
            if key not in number_of:
                number_of[key] = len(owners)
                owners.append(owner)
                ends.append(np.stack([points[index], points[(index + 1) % len(points)]]))
            numbers.append(number_of[key])
        joined |= {frozenset(pair) for pair in zip(numbers, numbers[1:] + numbers[:1], strict=True)}
    return owners, shapely.linestrings(np.array(ends)), joined
