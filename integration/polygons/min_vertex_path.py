"""The path with the fewest vertices through a shortcut graph; among those, the one that hugs the contour best.

Sets of nodes are whole numbers, bit b for node b, so that a breadth-first search takes one operation a node.

Shapes: n corners; K candidates a corner; A arcs; nodes as in `shortcut_graph`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from integration.polygons.shortcut_graph import ShortcutGraph

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
        wrong = graph.misses(source, target, _ROUNDING_PX)
        if not wrong.any():
            return source if graph.closed else path
        for node, ahead in zip(source[wrong].tolist(), np.diff(path)[wrong].tolist(), strict=True):
            arcs[node] &= ~(1 << ahead)


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
    first, door_count = _narrowest_cut(arcs, graph.k)
    arcs = arcs[first:] + arcs[:first]
    doors = range(door_count)
    tight = _tight_arcs(arcs, (1 << door_count) - 1, (1 << door_count) - 1 << lap)
    assert tight is not None, "neighbouring corners are always joined"
    path = _closed_path(graph, tight, first) or _single_door(graph, arcs, doors, tight.links + 1, first)
    return [node + first for node in path]


def _closed_path(graph: ShortcutGraph, tight: _Tight, first: int) -> list[int]:
    """The best path that ends a lap after its start; empty if there is none."""
    lap = graph.node_count
    path = _Cheapest(graph, tight, first, tight.goals).best_path(tight.starts)
    if path[-1] == path[0] + lap:
        return path
    reached = tight.goals_from()
    closing = [door for door in tight.starts if reached.get(door, 0) >> lap + door & 1]
    ways = [_Cheapest(graph, tight, first, [door + lap]) for door in closing]
    best = min(zip(ways, closing, strict=True), key=lambda way: way[0].cost[way[1]], default=None)
    return best[0].path(best[1]) if best else []


def _single_door(graph: ShortcutGraph, arcs: list[int], doors: range, fewest: int, first: int) -> list[int]:
    """The best of the shortest cycles through each door; one of `fewest` links ends the search."""
    best: _Tight | None = None
    for door in doors:
        most = best.links - 1 if best else len(arcs)
        tight = _tight_arcs(arcs, 1 << door, 1 << door + graph.node_count, most)
        best = tight or best
        if best and best.links == fewest:
            break
    assert best is not None, "the contour itself is a cycle"
    return _Cheapest(graph, best, first, best.goals).best_path(best.starts)


def _narrowest_cut(arcs: list[int], k: int) -> tuple[int, int]:
    """First node after the cut, and how many nodes from there on an arc over the cut may end at."""
    corner_count = len(arcs) // k
    lengths = np.array([bits.bit_length() - 1 for bits in arcs])
    farthest = ((np.arange(len(arcs)) + lengths) // k).reshape(corner_count, k).max(axis=1)
    so_far = np.maximum.accumulate(np.concatenate([farthest - corner_count, farthest]))[corner_count:]
    over = so_far - np.arange(corner_count)
    corner = int(np.argmin(over))
    return (corner + 1) * k % len(arcs), int(over[corner]) * k


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


def _tight_arcs(arcs: list[int], starts: int, goals: int, most: int | None = None) -> _Tight | None:
    """Search breadth first from a set of nodes to another; None if that takes more than `most` links.

    Nodes with arcs are 0 .. `len(arcs)` - 1; those behind are ends.
    """
    levels = _levels(arcs, starts, goals, len(arcs) if most is None else most)
    if levels is None:
        return None
    source, target = [], []
    base, reached = levels[-1]
    goals_met = [base + bit for bit in _bits(reached)]
    tight = reached
    for next_base, nodes in reversed(levels[:-1]):
        here, tight = 0, tight << base - next_base
        while nodes:
            lowest = nodes & -nodes
            nodes ^= lowest
            node = lowest.bit_length() - 1
            hits = arcs[next_base + node] & tight >> node
            if hits:
                here |= lowest
                node += next_base
                while hits:
                    lowest = hits & -hits
                    hits ^= lowest
                    source.append(node)
                    target.append(node + lowest.bit_length() - 1)
        base, tight = next_base, here
    return _Tight(source, target, [base + bit for bit in _bits(tight)], goals_met, len(levels) - 1)


def _levels(arcs: list[int], starts: int, goals: int, most: int) -> list[tuple[int, int]] | None:
    """The nodes first reached after 0, 1, ... links: a base and bits from there on. The last holds only goals."""
    base = (starts & -starts).bit_length() - 1
    fresh = seen = starts >> base
    levels = [(base, fresh)]
    while len(levels) <= most:
        reached, waiting = 0, fresh
        while waiting:
            lowest = waiting & -waiting
            waiting ^= lowest
            node = lowest.bit_length() - 1
            reached |= arcs[base + node] << node
        met = reached & goals >> base
        if met:
            levels.append((base, met))
            return levels
        if base + reached.bit_length() > len(arcs):
            reached &= (1 << len(arcs) - base) - 1  # other ends lead nowhere
        fresh = reached & ~seen
        if not fresh:
            return None
        seen |= fresh
        skip = (fresh & -fresh).bit_length() - 1  # nothing leads back
        base, fresh, seen = base + skip, fresh >> skip, seen >> skip
        levels.append((base, fresh))
    return None


def _bits(number: int) -> Iterator[int]:
    """The bits that are set, from the lowest."""
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


class _Cheapest:
    """From every node of the shortest paths, the way to the goals with the least sum of squared distances."""

    def __init__(self, graph: ShortcutGraph, tight: _Tight, first: int, goals: list[int]) -> None:
        """Count nodes from `first` on."""
        source = (np.array(tight.source) + first) % graph.node_count
        ahead = np.array(tight.target) - np.array(tight.source)
        squares = graph.squares_px3(source, source + ahead).tolist()
        self.cost = dict.fromkeys(tight.source, float("inf")) | dict.fromkeys(tight.goals, float("inf"))
        self.cost |= dict.fromkeys(goals, 0.0)
        self._next: dict[int, int] = {}
        cost = self.cost
        for source_node, target, square in zip(tight.source, tight.target, squares, strict=True):
            through = cost[target] + square
            if through < cost[source_node]:
                cost[source_node] = through
                self._next[source_node] = target

    def best_path(self, starts: list[int]) -> list[int]:
        """The cheapest path from any of these nodes."""
        return self.path(min(starts, key=self.cost.__getitem__))

    def path(self, start: int) -> list[int]:
        """The cheapest path from a node."""
        nodes = [start]
        while nodes[-1] in self._next:
            nodes.append(self._next[nodes[-1]])
        return nodes
