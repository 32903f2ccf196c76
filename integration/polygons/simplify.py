"""Simplify the chains that outline masks, within a certified tolerance and without changing the topology.

A chain is a closed ring of corners, or the open piece of a ring between two junctions. Every corner has its own radius,
at first the tolerance. Where simplified rings cross, touch wrongly, turn over or collapse, the radii nearby are halved
and the chain is solved again; at radius zero it is the exact contour, which is valid, so this ends.

Vertices on the contour make every chord of a round outline run inside of it. So each segment may become the line with
the least squared distance to the stretch of contour that it replaces, and each vertex the crossing of its two lines.
The two-way Hausdorff distance stays within the radii: a vertex stays within the radius of its own corner, and every
corner of a stretch within its radius of the segment. Then contour edges are covered because the tube around a segment
is convex, the segment between the feet of the stretch's ends because the stretch is connected, and what is left of it
at either end because both the vertex and the foot are near that end's corner.

Shapes: n corners of a chain; N vertices of a ring; S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely

from integration.polygons.min_vertex_path import ShortcutGraph, fewest_vertices

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
    first_corners = spans
    last_corners = np.append(spans[1:], spans[0] + count) if closed else spans[1:]
    if not closed:
        first_corners = spans[:-1]
    if len(first_corners) < 2:
        return vertices_px
    normals, offsets = _lines(moments[:, last_corners] - moments[:, first_corners])
    offsets = offsets + normals @ corners_px[0]
    targets_px = vertices_px.copy()
    line_before = np.roll(np.arange(len(first_corners)), 1) if closed else np.arange(len(first_corners) - 1)
    line_after = np.arange(len(first_corners)) if closed else np.arange(1, len(first_corners))
    index = np.arange(len(vertices_px)) if closed else np.arange(1, len(vertices_px) - 1)
    targets_px[index] = _crossings(
        normals[line_before], offsets[line_before], normals[line_after], offsets[line_after], vertices_px[index]
    )
    corner = corners_px[spans % count]
    targets_px = np.where((corner == 0) | (corner == size_px), corner, np.clip(targets_px, 0, size_px))
    return _certify(corners_px, radii_px, vertices_px, targets_px, spans, first_corners, last_corners)


def _lines(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals (N, 2) and offsets (N,) of the lines of least squares through stretches with these moments (6, N)."""
    xx, xy, yy, x, y, length = sums
    length = np.maximum(length, _NO_LENGTH)
    mean_x, mean_y = x / length, y / length
    angle = 0.5 * np.arctan2(2 * (xy / length - mean_x * mean_y), (xx / length - mean_x**2) - (yy / length - mean_y**2))
    normals = np.stack([-np.sin(angle), np.cos(angle)], axis=1)
    return normals, normals[:, 0] * mean_x + normals[:, 1] * mean_y


def _crossings(
    normals: np.ndarray, offsets: np.ndarray, other_normals: np.ndarray, other_offsets: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """Where pairs of lines cross; for lines that are nearly parallel, the point moved halfway to either."""
    sine = normals[:, 0] * other_normals[:, 1] - normals[:, 1] * other_normals[:, 0]
    is_parallel = np.abs(sine) < _PARALLEL
    safe = np.where(is_parallel, 1.0, sine)
    crossing = np.stack(
        [
            (offsets * other_normals[:, 1] - other_offsets * normals[:, 1]) / safe,
            (normals[:, 0] * other_offsets - other_normals[:, 0] * offsets) / safe,
        ],
        axis=1,
    )
    to_first = (offsets - (normals * points).sum(axis=1))[:, None] * normals
    to_second = (other_offsets - (other_normals * points).sum(axis=1))[:, None] * other_normals
    return np.where(is_parallel[:, None], points + (to_first + to_second) / 2, crossing)


def _certify(
    corners_px: np.ndarray,
    radii_px: np.ndarray,
    vertices_px: np.ndarray,
    targets_px: np.ndarray,
    spans: np.ndarray,
    first_corners: np.ndarray,
    last_corners: np.ndarray,
) -> np.ndarray:
    """Go as far from `vertices_px` towards `targets_px` as the radii allow."""
    count = len(corners_px)
    lengths = last_corners - first_corners + 1
    segment_count = len(first_corners)
    segment = np.repeat(np.arange(segment_count), lengths)
    corner = (
        np.arange(len(segment)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + first_corners[segment]
    ) % count
    own_corner, own_radius = corners_px[spans % count], radii_px[spans % count]
    # A target farther off than the radius is moved nearer, so that its direction is not lost.
    step = targets_px - own_corner
    distance = np.maximum(np.hypot(*step.T), _NO_LENGTH)
    targets_px = own_corner + step * np.minimum(1, own_radius * 0.999 / distance)[:, None]
    level: np.ndarray = np.zeros(len(vertices_px), dtype=np.int64)
    shares = np.array(_SHARES)
    ends = np.append(np.arange(1, segment_count), segment_count % len(vertices_px))
    while True:
        fitted: np.ndarray = vertices_px + shares[level][:, None] * (targets_px - vertices_px)
        is_wrong = np.zeros(segment_count, dtype=np.bool_)
        is_far = (
            _distance(corners_px[corner], fitted[:segment_count][segment], fitted[ends][segment]) > radii_px[corner]
        )
        is_wrong[segment[is_far]] = True
        is_movable = level < len(shares) - 1
        is_wrong &= is_movable[:segment_count] | is_movable[ends]
        if not is_wrong.any():
            return fitted
        is_blamed = np.zeros(len(vertices_px), dtype=np.bool_)
        is_blamed[np.flatnonzero(is_wrong)] = True
        is_blamed[ends[is_wrong]] = True
        level = np.asarray(np.minimum(level + is_blamed, len(shares) - 1))


def _distance(points: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Distance of each point from its segment."""
    line = ends - starts
    offset = points - starts
    share = ((offset * line).sum(axis=1) / np.maximum((line**2).sum(axis=1), _NO_LENGTH)).clip(0, 1)
    return np.asarray(np.hypot(*(offset - share[:, None] * line).T))


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

    def tighten(self, first_corner: int, last_corner: int) -> bool:
        """Halve the radii of the corners from one to another, past the end on around; False if all are zero."""
        at = np.arange(first_corner, last_corner + 1) % len(self.corners)
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
        was_stale = self._stale
        if was_stale:
            self._solve()
        return was_stale

    def segment_corners(self, index: int) -> tuple[int, int]:
        """First and last corner that segment `index` of the simplification replaces."""
        first_corner, last_corner = int(self.spans[index]), int(self.spans[(index + 1) % len(self.spans)])
        return first_corner, last_corner if last_corner > first_corner else last_corner + len(self.corners)

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
        segments = []
        for chain, forward in self.chains:
            count = len(chain.vertices)
            order = range(count if chain.closed else count - 1)
            if not forward:
                order = range(count - 2, -1, -1)
            indices = list(order)
            if chain.closed and not forward:
                indices.append(count - 1)
            segments += [(chain, index) for index in indices]
        return segments


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
        return shapely.MultiPolygon([shapely.Polygon(rings[0], rings[1:]) for rings in self.points_px()])

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
        count = sum([_settle_one(outline) for outline in outlines])  # solving a shared chain may upset another
        if len(outlines) < 2:
            return
        if disjoint and _part_overlaps(outlines):
            continue
        if not count:
            return


def _part_overlaps(outlines: Sequence[Outline]) -> bool:
    """Tighten the segments at which outlines overlap; False if none do."""
    shapes = np.array([outline.shape() for outline in outlines])
    first_indices, second_indices = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    overlaps = shapely.intersection(shapes[first_indices], shapes[second_indices])
    has_overlap = False
    for a, b, overlap in zip(first_indices, second_indices, overlaps, strict=True):
        if a < b and overlap.area > _NO_AREA_PX:
            has_overlap = True
            rings = [*outlines[a].rings(), *outlines[b].rings()]
            owners, lines, _ = _segments(rings)
            touched_numbers = np.flatnonzero(shapely.dwithin(lines, overlap, _ROUNDING_PX))
            if not _tighten([owners[number] for number in touched_numbers]):
                _tighten_all(rings)
    return has_overlap


def _settle_one(outline: Outline) -> int:
    """Make one outline valid; how many chains had to be solved again."""
    rings = outline.rings()
    chains = {id(chain): chain for ring in rings for chain, _ in ring.chains}.values()
    solved_count = 0
    while True:
        solved_count += sum([chain.refresh() for chain in chains])
        wrong_rings = [ring for ring in rings if not _keeps_sense(ring)]
        if wrong_rings:
            _tighten_all(wrong_rings)
            continue
        shape = outline.shape()
        if shapely.is_valid(shape):
            return solved_count
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
    return sum(chain.tighten(first_corner, last_corner) for chain, first_corner, last_corner in spans) > 0


def _crossed_segments(rings: list[Ring], predicate: str) -> list[tuple[Chain, int]]:
    """Segments that meet one they are not joined to; each once."""
    owners, lines, joined = _segments(rings)
    pairs = shapely.STRtree(lines).query(lines, predicate=predicate).T.tolist()
    numbers = {number for a, b in pairs if a < b and frozenset((a, b)) not in joined for number in (a, b)}
    return [owners[number] for number in sorted(numbers)]


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
