"""The number of vertices is the minimum: checked against a naive search over all cycles of the shortcut graph."""

from __future__ import annotations

import numpy as np
import pytest

from integration.polygons import min_vertex_path as shortcuts
from integration.polygons.contours import trace_rings
from integration.polygons.min_vertex_path import ShortcutGraph, fewest_vertices


def random_rings(seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    mask = np.kron(random.random((4, 5)) < 0.6, np.ones((2, 2))).astype(np.bool_) & (random.random((8, 10)) < 0.93)
    return [ring for ring in trace_rings(mask) if 6 <= len(ring) <= 34]


def distance_to_segment(point: complex, start: complex, end: complex) -> float:
    line = end - start
    share = 0.0 if line == 0 else min(1.0, max(0.0, ((point - start) * line.conjugate()).real / abs(line) ** 2))
    return abs(point - start - share * line)


def naive_fewest(graph: ShortcutGraph) -> int:
    """Breadth first from every node to itself a lap later, each arc judged corner by corner."""
    n, k = len(graph.corners_px), graph.k
    corners, nodes = (list(map(complex, *points.T)) for points in (graph.corners_px, graph.nodes_px))
    ahead: dict[int, list[int]] = {}
    for source in range(n * k):
        ahead[source] = []
        for step in range(1, n):
            between = [corners[(source // k + s) % n] for s in range(1, step)]
            for node in range(k):
                target = (source // k + step) * k + node
                line = nodes[source], nodes[target % (n * k)]
                if all(distance_to_segment(c, *line) <= graph.radii_px[0] + 1e-9 for c in between):
                    ahead[source].append(target)
    return min(_laps(ahead, start, n * k) for start in range(n * k))


def _laps(ahead: dict[int, list[int]], start: int, lap: int) -> int:
    reached, links = {start}, 0
    while start + lap not in reached:
        links += 1
        onward = {t + (u // lap) * lap for u in reached for t in ahead[u % lap]}
        reached = {t for t in onward if t <= start + lap}
        if not reached:
            return lap
    return links


@pytest.mark.parametrize("tolerance_px", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("longest", [0, 60])  # corners of a chain with candidates beside the contour
@pytest.mark.parametrize("seed", range(3))
def test_cycles_are_the_shortest(seed: int, longest: int, tolerance_px: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts, "_LONG_CHAIN", longest)
    for ring in random_rings(seed)[:2]:
        graph = ShortcutGraph(ring.astype(np.float64), np.full(len(ring), tolerance_px), closed=True)
        assert graph.k == (2 if longest else 1)
        nodes = fewest_vertices(graph)
        assert len(nodes) == naive_fewest(graph)
        assert len(np.unique(nodes)) == len(nodes)


def test_an_open_chain_keeps_its_ends() -> None:
    steps = np.array([[0, 0], [3, 0], [3, 1], [6, 1], [6, 2], [9, 2], [9, 9]], dtype=np.float64)
    radii = np.array([0, 1, 1, 1, 1, 1, 0], dtype=np.float64)
    graph = ShortcutGraph(steps, radii, closed=False)
    points = graph.points_px(fewest_vertices(graph))
    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [9, 9]
    assert len(points) == 3


def test_a_corner_with_radius_zero_stays() -> None:
    (ring,) = trace_rings(np.triu(np.ones((9, 9), dtype=np.bool_)))
    radii = np.full(len(ring), 1.5)
    radii[5] = 0.0
    graph = ShortcutGraph(ring.astype(np.float64), radii, closed=True)
    points = graph.points_px(fewest_vertices(graph))
    kept = ring[5]
    ends = np.stack([points, np.roll(points, -1, axis=0)], axis=1)
    assert min(distance_to_segment(complex(*kept), complex(*a), complex(*b)) for a, b in ends) < 1e-6


def test_long_chains_stay_on_the_contour() -> None:
    x = np.arange(900)
    steps = np.repeat(np.stack([x, x % 7], axis=1), 2, axis=0)[1:].astype(np.float64)
    steps[1::2, 1] = steps[0::2, 1][: len(steps[1::2])]
    ring = np.concatenate([steps, [[899.0, 60.0], [0.0, 60.0]]])
    graph = ShortcutGraph(ring, np.full(len(ring), 1.0), closed=True)
    assert graph.k == 1
    points = graph.points_px(fewest_vertices(graph))
    assert set(map(tuple, points.tolist())) <= set(map(tuple, ring.tolist()))
