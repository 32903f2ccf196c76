"""The fewest vertices that a contour can be drawn with within its radii; of those paths, the one closest to it.

A contour is a chain of n corners; corner i has a radius r_i, the distance the simplified line may keep from it. Around
every corner there are K candidate vertices: the corner itself and, on short chains, a point on the outer side of the
turn, a radius away. (On real masks leaving the contour everywhere would save one vertex in twenty, for twice the time.)

The shortcut graph says which straight lines may replace which stretch. The segment from candidate u of corner i to
candidate v of corner j may replace corners i..j when every corner between is within its radius of the segment. Then the
segment and that stretch have a two-way Hausdorff distance of at most the largest radius: contour edges between covered
corners are covered because the tube around a segment is convex, and the projection of the connected stretch covers the
segment from end to end.

A corner is near a segment exactly if it is near both rays, the one from u through v and the one from v through u (Chan
and Chin 1996). The second ray rejects less than one arc in a thousand, so arcs are proposed by the first alone (see
`_Wedges`), and `misses` checks those that are used.

Shapes: n corners; K candidates; B corners of a block; W walkers; A arcs. Node i * K + a is candidate a of corner i; in
closed chains nodes from n * K on are the same ring again. Sets of nodes and the arcs from a node are whole numbers, bit
b for node b or for the node b further on, so that a breadth-first search takes one operation a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_ROUNDING_PX = 1e-9


def fewest_vertices(graph: ShortcutGraph) -> np.ndarray:
    """Nodes of the best path from the first corner to the last; of the best cycle, for a closed chain.

    The number of links is the minimum, certainly. So is the sum of squared distances, for open chains and when the
    least number of links from door to door (see `_best_cycle`) closes.
    """
    arcs = graph.arcs()
    while True:
        path = np.array(_best_cycle(graph, arcs) if graph.closed else _best_path(graph, arcs))
        source = path[:-1] % graph.node_count
        target = source + np.diff(path)
        is_wrong = graph.misses(source, target, _ROUNDING_PX)
        if not is_wrong.any():
            return source if graph.closed else path
        for node, link_length in zip(source[is_wrong].tolist(), np.diff(path)[is_wrong].tolist(), strict=True):
            arcs[node] &= ~(1 << link_length)


def _best_path(graph: ShortcutGraph, arcs: list[int]) -> list[int]:
    goal = graph.node_count - graph.k
    tight = _tight_arcs(arcs, 1, 1 << goal)
    assert tight is not None, "neighbouring corners are always joined"
    return _Cheapest(graph, tight, 0, [goal]).path(0)


def _best_cycle(graph: ShortcutGraph, arcs: list[int]) -> list[int]:
    """The best cycle around a closed chain, its first node repeated a lap later.

    The chain is cut where the fewest nodes can follow a cut; any cycle has a vertex among those, the doors. A path from
    any door to any door is a lower bound. If none of the shortest closes, cycles through single doors are tried.
    """
    lap = graph.node_count
    first_node, door_count = _narrowest_cut(arcs, graph.k)
    arcs = arcs[first_node:] + arcs[:first_node]
    doors = range(door_count)
    tight = _tight_arcs(arcs, (1 << door_count) - 1, (1 << door_count) - 1 << lap)
    assert tight is not None, "neighbouring corners are always joined"
    path = _closed_path(graph, tight, first_node) or _single_door(graph, arcs, doors, tight.links + 1, first_node)
    return [node + first_node for node in path]


def _closed_path(graph: ShortcutGraph, tight: _Tight, first_node: int) -> list[int]:
    """The best path that ends a lap after its start; empty if there is none."""
    lap = graph.node_count
    path = _Cheapest(graph, tight, first_node, tight.goals).best_path(tight.starts)
    if path[-1] == path[0] + lap:
        return path
    reached = tight.goals_from()
    closing_doors = [door for door in tight.starts if reached.get(door, 0) >> lap + door & 1]
    ways = [_Cheapest(graph, tight, first_node, [door + lap]) for door in closing_doors]
    best_way = min(zip(ways, closing_doors, strict=True), key=lambda way: way[0].cost[way[1]], default=None)
    return best_way[0].path(best_way[1]) if best_way else []


def _single_door(graph: ShortcutGraph, arcs: list[int], doors: range, fewest: int, first_node: int) -> list[int]:
    """The best of the shortest cycles through each door; one of `fewest` links ends the search."""
    best_cycles: _Tight | None = None
    for door in doors:
        most_links = best_cycles.links - 1 if best_cycles else len(arcs)
        tight = _tight_arcs(arcs, 1 << door, 1 << door + graph.node_count, most_links)
        best_cycles = tight or best_cycles
        if best_cycles and best_cycles.links == fewest:
            break
    assert best_cycles is not None, "the contour itself is a cycle"
    return _Cheapest(graph, best_cycles, first_node, best_cycles.goals).best_path(best_cycles.starts)


def _narrowest_cut(arcs: list[int], k: int) -> tuple[int, int]:
    """First node after the cut, and how many nodes from there on an arc over the cut may end at."""
    corner_count = len(arcs) // k
    lengths = np.array([bits.bit_length() - 1 for bits in arcs])
    farthest = ((np.arange(len(arcs)) + lengths) // k).reshape(corner_count, k).max(axis=1)
    farthest_so_far = np.maximum.accumulate(np.concatenate([farthest - corner_count, farthest]))[corner_count:]
    reach = farthest_so_far - np.arange(corner_count)
    corner = int(np.argmin(reach))
    return (corner + 1) * k % len(arcs), int(reach[corner]) * k


@dataclass(frozen=True, slots=True)
class _Tight:
    """The arcs that are on some shortest path, backwards: those of the last link first."""

    source: list[int]
    target: list[int]
    starts: list[int]
    goals: list[int]
    links: int

    def goals_from(self) -> dict[int, int]:
        """The goals, as bits, that can be reached from each node."""
        reach = {goal: 1 << goal for goal in self.goals}
        for source, target in zip(self.source, self.target, strict=True):
            reach[source] = reach.get(source, 0) | reach.get(target, 0)
        return reach


def _tight_arcs(arcs: list[int], starts: int, goals: int, most_links: int | None = None) -> _Tight | None:
    """Search breadth first from a set of nodes to another; None if that takes more than `most_links` links.

    Nodes with arcs are 0 .. `len(arcs)` - 1; those behind are ends.
    """
    levels = _levels(arcs, starts, goals, len(arcs) if most_links is None else most_links)
    if levels is None:
        return None
    source, target = [], []
    base, reached_goals = levels[-1]
    goals_met = [base + bit for bit in _bits(reached_goals)]
    tight = reached_goals
    for next_base, nodes in reversed(levels[:-1]):
        level_nodes, tight = 0, tight << base - next_base
        while nodes:
            lowest = nodes & -nodes
            nodes ^= lowest
            node = lowest.bit_length() - 1
            hits = arcs[next_base + node] & tight >> node
            if hits:
                level_nodes |= lowest
                node += next_base
                while hits:
                    lowest = hits & -hits
                    hits ^= lowest
                    source.append(node)
                    target.append(node + lowest.bit_length() - 1)
        base, tight = next_base, level_nodes
    return _Tight(source, target, [base + bit for bit in _bits(tight)], goals_met, len(levels) - 1)


def _levels(arcs: list[int], starts: int, goals: int, most_links: int) -> list[tuple[int, int]] | None:
    """The nodes first reached after 0, 1, ... links: a base and bits from there on. The last holds only goals."""
    base = (starts & -starts).bit_length() - 1
    fresh_nodes = visited_nodes = starts >> base
    levels = [(base, fresh_nodes)]
    while len(levels) <= most_links:
        reached_nodes, open_nodes = 0, fresh_nodes
        while open_nodes:
            lowest = open_nodes & -open_nodes
            open_nodes ^= lowest
            node = lowest.bit_length() - 1
            reached_nodes |= arcs[base + node] << node
        goals_met = reached_nodes & goals >> base
        if goals_met:
            levels.append((base, goals_met))
            return levels
        if base + reached_nodes.bit_length() > len(arcs):
            reached_nodes &= (1 << len(arcs) - base) - 1  # other ends lead nowhere
        fresh_nodes = reached_nodes & ~visited_nodes
        if not fresh_nodes:
            return None
        visited_nodes |= fresh_nodes
        skip = (fresh_nodes & -fresh_nodes).bit_length() - 1  # nothing leads back
        base, fresh_nodes, visited_nodes = base + skip, fresh_nodes >> skip, visited_nodes >> skip
        levels.append((base, fresh_nodes))
    return None


def _bits(number: int) -> Iterator[int]:
    """The bits that are set, from the lowest."""
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


class _Cheapest:
    """From every node of the shortest paths, the way to the goals with the least sum of squared distances."""

    def __init__(self, graph: ShortcutGraph, tight: _Tight, first_node: int, goals: list[int]) -> None:
        """Count nodes from `first_node` on."""
        source = (np.array(tight.source) + first_node) % graph.node_count
        link_lengths = np.array(tight.target) - np.array(tight.source)
        squares = graph.squares_px3(source, source + link_lengths).tolist()
        self.cost = dict.fromkeys(tight.source, float("inf")) | dict.fromkeys(tight.goals, float("inf"))
        self.cost |= dict.fromkeys(goals, 0.0)
        self._successor: dict[int, int] = {}
        cost = self.cost
        for source_node, target, square in zip(tight.source, tight.target, squares, strict=True):
            through = cost[target] + square
            if through < cost[source_node]:
                cost[source_node] = through
                self._successor[source_node] = target

    def best_path(self, starts: list[int]) -> list[int]:
        """The cheapest path from any of these nodes."""
        return self.path(min(starts, key=self.cost.__getitem__))

    def path(self, start: int) -> list[int]:
        """The cheapest path from a node."""
        nodes = [start]
        while nodes[-1] in self._successor:
            nodes.append(self._successor[nodes[-1]])
        return nodes


_OFFSETS = (0.0, -0.999)  # of the radius, along the bisector towards the inner side of the turn
_LONG_CHAIN = 60  # corners; the candidates of longer chains are on the contour only
_BLOCK_BITS = 32  # most candidates of a block: few enough for exact sums of powers of two
_BLOCK_CELLS = 8192  # walkers x corners; on long chains, unneeded cells cost more than calls
_LEAST_BLOCK = 16
_POWERS = 2.0 ** np.arange(_BLOCK_BITS)
_CHUNK = 512  # walkers that go together: small enough for the processor's cache
_SLACK_PX = 1e-11  # proposed arcs may miss a corner by rounding; far below the slack given to `misses`
_SLACK = 1e-12


class ShortcutGraph:
    """Candidates and proposed arcs of one chain."""

    def __init__(self, corners_px: np.ndarray, radii_px: np.ndarray, *, closed: bool) -> None:
        """Take corners (n, 2), no two neighbours alike, and radii (n,) >= 0; `closed` joins the last to the first."""
        self.corners_px = np.asarray(corners_px, dtype=np.float64)
        self.radii_px, self.closed = np.asarray(radii_px, dtype=np.float64), closed
        self.k = len(_OFFSETS) if len(corners_px) <= _LONG_CHAIN else 1
        self.nodes_px = self._candidates() if self.k > 1 else self.corners_px
        self._sums: np.ndarray | None = None

    @property
    def node_count(self) -> int:
        """Nodes of one lap."""
        return len(self.nodes_px)

    def points_px(self, nodes: np.ndarray) -> np.ndarray:
        """Coordinates (A, 2) of nodes (A,)."""
        return self.nodes_px[np.asarray(nodes) % self.node_count]

    def corner_of(self, nodes: np.ndarray) -> np.ndarray:
        """The corner (A,) each node belongs to."""
        return (np.asarray(nodes) // self.k) % len(self.corners_px)

    def arcs(self) -> list[int]:
        """For each node the nodes its ray may reach, as bits."""
        walk, count = _Walk(self), len(self.corners_px)
        arcs: list[int] = []
        with np.errstate(divide="ignore", invalid="ignore"):  # slopes of what is beside or behind a walker
            for start in range(0, count, _CHUNK):
                arcs += walk.arcs_from(start, min(start + _CHUNK, count))
        return arcs

    def misses(self, source: np.ndarray, target: np.ndarray, slack_px: float) -> np.ndarray:
        """Whether some corner between is more than its radius and `slack_px` from each arc: bool (A,)."""
        first_corner, count = source // self.k + 1, target // self.k - source // self.k - 1
        arc = np.repeat(np.arange(len(source)), count)
        corner = np.arange(len(arc)) - np.repeat(np.cumsum(count) - count - first_corner, count)
        corner %= len(self.corners_px)
        start = self.nodes_px[source]
        line = self.nodes_px[target % self.node_count] - start
        square = np.maximum(line[:, 0] ** 2 + line[:, 1] ** 2, _SLACK)
        (x, y), (along_x, along_y) = (self.corners_px[corner] - start[arc]).T, line[arc].T
        share = ((x * along_x + y * along_y) / square[arc]).clip(0, 1)
        is_far = np.hypot(x - share * along_x, y - share * along_y) > self.radii_px[corner] + slack_px
        is_missed = np.zeros(len(source), dtype=np.bool_)
        is_missed[arc[is_far]] = True
        return is_missed

    def squares_px3(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Integral (A,), along the stretch that each arc replaces, of the squared distance to the arc's line."""
        sums = self.moments()
        xx, xy, yy, x, y, weight = sums[:, target // self.k] - sums[:, source // self.k]
        start = self.nodes_px[source] - self.corners_px[0]
        dx, dy = (self.nodes_px[target % self.node_count] - self.nodes_px[source]).T
        # The distance is (x dy - y dx - c) / length.
        c = start[:, 0] * dy - start[:, 1] * dx
        square = dy * dy * xx - 2 * dx * dy * xy + dx * dx * yy + 2 * c * (dx * y - dy * x) + c * c * weight
        return np.maximum(square / np.maximum(dx * dx + dy * dy, _SLACK), 0.0)

    def moments(self) -> np.ndarray:
        """Sums of `_running_moments`, computed once."""
        if self._sums is None:
            self._sums = self._running_moments()
        return self._sums

    def _running_moments(self) -> np.ndarray:
        """Integrals (6, 2 n + 1) of x^2, xy, y^2, x, y, 1 along two laps of the chain, up to each corner.

        Counted from the first corner, so that little is lost to rounding.
        """
        start = (self.corners_px - self.corners_px[0]).T
        end = np.concatenate([start[:, 1:], start[:, :1]], axis=1)
        (px, py), (qx, qy) = start, end
        integrals = np.empty((6, len(px)))
        integrals[0::2][:2] = (start * start + start * end + end * end) / 3
        integrals[1] = (px * (2 * py + qy) + qx * (2 * qy + py)) / 6
        integrals[3:5] = (start + end) / 2
        integrals[5] = 1
        integrals *= np.hypot(*(end - start))
        sums = np.zeros((6, 2 * len(px) + 1))
        np.cumsum(np.concatenate([integrals, integrals], axis=1), axis=1, out=sums[:, 1:])
        return sums

    def _candidates(self) -> np.ndarray:
        corners = self.corners_px
        edges = np.concatenate([corners[:1] - corners[-1:], np.diff(corners, axis=0)])
        # Zero over the end of an open chain, if that is a loop.
        edges /= np.maximum(np.hypot(*edges.T), _SLACK)[:, None]
        bisector = edges - np.concatenate([edges[1:], edges[:1]])
        bisector *= (self.radii_px / np.maximum(np.hypot(*bisector.T), _SLACK))[:, None]
        return (corners[:, None] + bisector[:, None] * np.array(_OFFSETS)[:, None]).reshape(-1, 2)


class _Walk:
    """The chain laid out twice, so that what lies ahead of many corners is one view, not a copy."""

    def __init__(self, graph: ShortcutGraph) -> None:
        self.count, self.k, self.closed = len(graph.corners_px), graph.k, graph.closed
        is_uniform = graph.radii_px.min() == graph.radii_px.max()
        self.radii = (graph.radii_px[:1] if is_uniform else np.concatenate([graph.radii_px] * 2)) + _SLACK_PX
        self.corners = np.concatenate([graph.corners_px] * 2).T.copy()
        self.starts = graph.nodes_px.T
        # The first candidate of a corner is the corner itself.
        self.candidates = [np.concatenate([graph.nodes_px[a :: self.k]] * 2).T for a in range(1, self.k)]
        self.block = min(max(_BLOCK_CELLS // self.count, _LEAST_BLOCK), _BLOCK_BITS) // self.k

    def arcs_from(self, start: int, stop: int) -> list[int]:
        """The arcs of the nodes of corners `start` .. `stop` - 1."""
        home = np.repeat(np.arange(start, stop), self.k)
        at = self.starts[:, start * self.k : stop * self.k]
        walkers: np.ndarray = np.arange(len(home))
        reach = [0] * len(home)
        wedges = _Wedges(len(home))
        step, steps = 1, self.count - 1 if self.closed else self.count - 1 - start
        while step <= steps and len(walkers):
            block_steps = np.arange(step, min(step + self.block, steps + 1))
            index = home + block_steps[:, None]
            radii = self.radii if len(self.radii) == 1 else self.radii[index]
            candidates = [self._from_walkers(points, index, at) for points in self.candidates]
            bits = self._bits(wedges.narrow(*self._from_walkers(self.corners, index, at), radii, candidates), index)
            if step == 1:
                reach = bits
            else:
                for walker, block_bits in zip(walkers.tolist(), bits, strict=True):
                    reach[walker] |= block_bits << (step - 1) * self.k
            step += len(block_steps)
            alive = np.flatnonzero(wedges.alive if self.closed else wedges.alive & (home + step < self.count))
            if len(alive) < len(walkers):
                wedges.only(alive)
                walkers, home, at = walkers[alive], home[alive], at[:, alive]
        if self.k > 1:
            # Counted from the node, no longer from the first candidate of its corner.
            reach = [bits << self.k - number % self.k for number, bits in enumerate(reach)]
        else:
            reach = [bits << 1 for bits in reach]
        return reach

    @staticmethod
    def _from_walkers(points: np.ndarray, index: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of points relative to the walkers: x and y (B, W)."""
        return points[0][index] - at[0], points[1][index] - at[1]

    def _bits(self, admitted: list[np.ndarray], index: np.ndarray) -> list[int]:
        """One number for each walker: bit b K + a for candidate a of corner b of the block."""
        total = 0.0
        for candidate, fits in enumerate(admitted):
            if not self.closed:
                fits &= index < self.count
            total = total + _POWERS[candidate :: self.k][: len(index)] @ fits.astype(np.float64)
        return np.asarray(total).astype(np.int64).tolist()


_STEEP = 1e18  # stands for an unbounded slope; infinity would give NaN times zero


class _Wedges:
    """Which rays from each of W walkers pass near all corners of a growing stretch: a wedge that shrinks.

    A disc around each corner must be met. Seen from a walker outside of it, a disc is an interval of directions; the
    wedge is what all intervals so far have in common. Directions are slopes in the walker's own frame, whose axis
    points at the first corner whose disc it is not inside of: all later admissible rays are less than a right angle
    from that.

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
        self, x: np.ndarray, y: np.ndarray, radius: np.ndarray, candidates: list[tuple[np.ndarray, np.ndarray]]
    ) -> list[np.ndarray]:
        """Take the next B corners.

        Args:
            x: (B, W), from the walker to the centre of each disc.
            radius: of the discs, broadcastable to (B, W).
            candidates: x and y (B, W) of more points that belong to the corners, from the walker.

        Returns:
            For the centres and then for each of the candidates, bool (B, W): whether the ray to it is in the wedge of
            all corners before its own.
        """
        power = x * x
        power += y * y
        power -= radius * radius
        is_inside = power <= 0
        is_free = self._choose_axes(is_inside, x, y)
        along, across = self._in_frames(x, y)
        low, high = self._bounds(power, is_inside, along, across, radius)
        self._low, self._high = low[-1], high[-1]
        self.alive = self._low <= self._high
        admitted = []
        for point_along, point_across in [(along, across), *(self._in_frames(*candidate) for candidate in candidates)]:
            low_side, high_side = low[:-1] * point_along, high[:-1] * point_along
            fits = point_across >= low_side
            fits &= point_across <= high_side
            fits &= point_along > 0
            if is_free is not None:
                fits |= is_free
            admitted.append(fits)
        return admitted

    def _choose_axes(self, is_inside: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
        """Point the frames of walkers that have none at their first corner out of reach.

        Returns:
            Bool (B, W): the corners up to that one, whose targets any ray may go to; None if all had frames.
        """
        if not self._any_blank:
            return None
        blank = (self._axis_x == 0) & (self._axis_y == 0)
        first_corner, column = np.argmin(is_inside, axis=0), np.arange(is_inside.shape[1])
        hits = blank & ~is_inside[first_corner, column]
        self._axis_x[hits], self._axis_y[hits] = x[first_corner, column][hits], y[first_corner, column][hits]
        self._any_blank = bool((blank & ~hits).any())
        last_corner = np.where(hits, first_corner, np.where(blank, len(is_inside), -1))
        return np.arange(len(is_inside))[:, None] <= last_corner

    def _in_frames(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (B, W) in the walkers' frames, scaled by the length of the axis."""
        along = x * self._axis_x
        along += y * self._axis_y
        across = y * self._axis_x
        across -= x * self._axis_y
        return along, across

    def _bounds(
        self, power: np.ndarray, is_inside: np.ndarray, along: np.ndarray, across: np.ndarray, radius: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest slopes (B + 1, W): before the block and after each of its corners.

        A tangent that points backwards bounds nothing if its disc is on its side, and else leaves no ray.
        """
        shape = len(along) + 1, along.shape[1]
        low, high = np.empty(shape), np.empty(shape)
        low[0], high[0] = self._low, self._high
        tangent = np.sqrt(np.maximum(power, 0.0, out=power), out=power)
        backwards = np.copysign(_STEEP, across)
        straight, aside = along * tangent, across * radius
        lifted, lowered = across * tangent, along * radius
        run, rise = straight - aside, lifted + lowered
        np.divide(rise, run, out=high[1:])
        np.copyto(high[1:], backwards, where=run <= 0)
        np.copyto(high[1:], _STEEP, where=is_inside)
        np.add(straight, aside, out=run)
        np.subtract(lifted, lowered, out=rise)
        np.divide(rise, run, out=low[1:])
        np.copyto(low[1:], backwards, where=run <= 0)
        np.copyto(low[1:], -_STEEP, where=is_inside)
        np.maximum.accumulate(low, axis=0, out=low)
        np.minimum.accumulate(high, axis=0, out=high)
        return low, high
