"""The path with the fewest vertices through a shortcut graph; among those, the one that hugs the contour best.

Shapes: n corners; K candidates a corner; A arcs; nodes as in `shortcuts`.
"""

from __future__ import annotations

import numpy as np

from integration.shortcuts import Arcs, ShortcutGraph

_ROUNDING_PX = 1e-9


def fewest_vertices(graph: ShortcutGraph) -> np.ndarray:
    """Nodes of the best path from the first corner to the last; of the best cycle, for a closed chain.

    The number of links is the minimum, certainly. So is the sum of squared distances, for open chains and when the
    first cycle closes.
    """
    arcs = graph.arcs()
    while True:
        path = _best_cycle(arcs, graph) if graph.closed else _best_path(arcs, graph)
        source = path[:-1] % len(graph.nodes)
        target = source + np.diff(path)
        wrong = graph.overreach_px(source, target) > _ROUNDING_PX
        if not wrong.any():
            return source if graph.closed else path
        arcs = _without(arcs, source[wrong], target[wrong])


def _without(arcs: Arcs, source: np.ndarray, target: np.ndarray) -> Arcs:
    span = int(arcs.target.max()) + 1
    keep = ~np.isin(arcs.source * span + arcs.target, source * span + target)
    return Arcs(arcs.source[keep], arcs.target[keep], arcs.square_px3[keep])


class _Links:
    """Arcs as lists, for loops; the weight of a link is more than all squares of a path together."""

    def __init__(self, arcs: Arcs, graph: ShortcutGraph, first: int = 0) -> None:
        """`first` becomes node 0 (closed chains)."""
        self.lap = len(graph.nodes)
        perimeter_px = float(np.abs(np.diff(graph.corners, append=graph.corners[:1])).sum())
        self.weight = 1.0 + 1.01 * perimeter_px * float(graph.radii.max()) ** 2
        split = int(np.searchsorted(arcs.source, first))
        self.source = _rotated(arcs.source - first, split, self.lap)
        self.target = _rotated(arcs.target - first, split, self.lap)
        self.cost = _rotated(arcs.square_px3 + self.weight, split, 0)


def _rotated(values: np.ndarray, split: int, lap: int) -> list:
    return values[split:].tolist() + (values[:split] + lap).tolist()


class _Distances:
    """Distances from some start nodes to all nodes. One pass does, because arcs only lead forward."""

    def __init__(self, links: _Links, starts: list[int]) -> None:
        cost = [float("inf")] * (2 * links.lap)
        parent = [-1] * (2 * links.lap)
        for start in starts:
            cost[start] = 0.0
        for source, target, weight in zip(links.source, links.target, links.cost, strict=True):
            through = cost[source] + weight
            if through < cost[target]:
                cost[target] = through
                parent[target] = source
        self.cost, self._parent = cost, parent

    def path(self, goal: int) -> list[int]:
        nodes = [goal]
        while self._parent[nodes[-1]] >= 0:
            nodes.append(self._parent[nodes[-1]])
        return nodes[::-1]


def _best_path(arcs: Arcs, graph: ShortcutGraph) -> np.ndarray:
    return np.array(_Distances(_Links(arcs, graph), [0]).path(len(graph.nodes) - graph.k))


def _best_cycle(arcs: Arcs, graph: ShortcutGraph) -> np.ndarray:
    """The best cycle around a closed chain, its first node repeated a lap later.

    The chain is cut where the fewest nodes can follow a cut; any cycle has a vertex among those, the doors. A path from
    any door to any door is a lower bound. If it does not happen to close, cycles through single doors are tried: first
    the one it ended at, then those from which the bound can be reached at all.
    """
    first, door_count = _narrowest_cut(arcs, len(graph.corners), graph.k)
    links = _Links(arcs, graph, first)
    bound = _Distances(links, list(range(door_count)))
    end = min(range(links.lap, links.lap + door_count), key=bound.cost.__getitem__)
    path = bound.path(end)
    if path[0] + links.lap != end:
        fewest = int(bound.cost[end] // links.weight)
        path = _shortest(_cycles_through(links, [end - links.lap]))
        if len(path) - 1 != fewest:
            tight = _cycles_through(links, _tight_doors(links, bound.cost, door_count, fewest))
            if not tight and len(path) - 1 != fewest + 1:
                tight = _cycles_through(links, list(range(door_count)))
            path = _shortest([path, *tight])
    return np.array(path) + first


def _shortest(paths: list[list[int]]) -> list[int]:
    """The path with the fewest nodes; an empty one, if there is no other."""
    return min(paths, key=lambda path: len(path) or float("inf"), default=[])


def _narrowest_cut(arcs: Arcs, corner_count: int, k: int) -> tuple[int, int]:
    """First node after the cut, and how many nodes from there on an arc over the cut may end at."""
    farthest = np.zeros(corner_count, dtype=np.int64)
    np.maximum.at(farthest, arcs.source // k, arcs.target // k)
    so_far = np.maximum.accumulate(np.concatenate([farthest - corner_count, farthest]))[corner_count:]
    over = so_far - np.arange(corner_count)
    corner = int(np.argmin(over))
    return (corner + 1) * k, int(over[corner]) * k


def _cycles_through(links: _Links, doors: list[int]) -> list[list[int]]:
    """The best cycle through each door as the first node after the cut, of those that have one."""
    paths = [_Distances(links, [door]).path(door + links.lap) for door in doors]
    return [path for path in paths if len(path) > 1]


def _tight_doors(links: _Links, cost: list[float], door_count: int, fewest: int) -> list[int]:
    """Doors with a cycle of the fewest links: every node keeps, as bits, the doors it is reached from that soon."""
    level = [int(c // links.weight) if c < float("inf") else -1 for c in cost]
    doors = [1 << node if node < door_count else 0 for node in range(len(cost))]
    for source, target in zip(links.source, links.target, strict=True):
        if level[source] + 1 == level[target]:
            doors[target] |= doors[source]
    back = range(links.lap, links.lap + door_count)
    return [n - links.lap for n in back if level[n] == fewest and doors[n] >> (n - links.lap) & 1]
