"""Draw an object of several parts and holes as one ring, and take such a ring apart again.

Label Studio counts regions, and its polygons know neither parts nor holes. So parts and holes are joined by cuts that
are walked there and back: they enclose nothing, so filling the ring gives the parts exactly, under the even-odd and
the non-zero rule. Cuts run between existing vertices, hence add no new coordinates that could be rounded.

Shapes: N, M vertices of rings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from scipy.spatial import cKDTree

from integration.polygons.contours import Polygon
from integration.polygons.simplify import signed_area

_NEAREST = 8  # vertices tried as the far end of a cut before the shortest is taken although it crosses a part


def join_polygons(polygons: Sequence[Polygon]) -> np.ndarray:
    """Join the polygons of one object by the shortest cuts between their vertices.

    Returns:
        One closed ring (N, 2). Cuts add no new coordinates, so nothing is lost to rounding.
    """
    other_polygons = sorted(polygons, key=lambda polygon: -polygon.area_px)
    ring = _open_ring(other_polygons.pop(0))
    outlines = shapely.union_all([shapely.Polygon(polygon.exterior) for polygon in other_polygons])
    while other_polygons:
        index, at_ring, at_part, part = min(
            (_shortest_cut(ring, number, polygon, outlines) for number, polygon in enumerate(other_polygons)),
            key=lambda cut: (cut[4], cut[0]),
        )[:4]
        del other_polygons[index]
        loop = np.roll(part, -at_part, axis=0)
        ring = np.concatenate([ring[: at_ring + 1], loop, loop[:1], ring[at_ring:]])
    return ring


def _open_ring(polygon: Polygon) -> np.ndarray:
    return cut_open(polygon.exterior, polygon.holes) if polygon.holes else polygon.exterior


def _shortest_cut(
    ring: np.ndarray, number: int, polygon: Polygon, outlines: shapely.Geometry
) -> tuple[int, int, int, np.ndarray, float]:
    """Number and vertices of the ring and of a part's own ring to join; that ring, and the length of the cut.

    The shortest cut that does not run through another part is preferred.
    """
    part = _open_ring(polygon)
    distance, nearest = cKDTree(ring).query(part, k=1)
    order = np.argsort(distance, kind="stable")[:_NEAREST]
    for at_part in order:
        line = shapely.LineString([ring[nearest[at_part]], part[at_part]])
        if line.length == 0 or shapely.intersection(line, outlines).length < 1e-9:
            break
    else:
        at_part = order[0]
    return number, int(nearest[at_part]), int(at_part), part, float(distance[at_part])


def cut_open(exterior: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """Join the holes to the exterior by the shortest bridges found.

    Args:
        holes: (M, 2) each, inside the exterior, walked in the opposite direction.

    Returns:
        (N + sum of M + 2 per hole, 2): one closed ring that touches itself along the bridges.
    """
    ring, remaining_holes = np.asarray(exterior), [np.asarray(hole) for hole in holes]
    interior = shapely.Polygon(exterior, remaining_holes)
    bridges: list[shapely.LineString] = []
    while remaining_holes:
        index, at_ring, at_hole = _closest_visible(ring, remaining_holes, interior, bridges)
        hole = remaining_holes.pop(index)
        if not np.array_equal(ring[at_ring], hole[at_hole]):
            bridges.append(shapely.LineString([ring[at_ring], hole[at_hole]]))
        loop = np.roll(hole, -at_hole, axis=0)
        ring = np.concatenate([ring[: at_ring + 1], loop, loop[:1], ring[at_ring:]])
    return ring


def _closest_visible(
    ring: np.ndarray, holes: list[np.ndarray], interior: shapely.Polygon, bridges: list[shapely.LineString]
) -> tuple[int, int, int]:
    """Hole, vertex of the ring, vertex of that hole: the shortest bridge inside the polygon that crosses no other.

    A polygon with holes can always be triangulated, so such a pair exists; nearby pairs are tried first.
    """
    tree = cKDTree(ring)
    owner = np.repeat(np.arange(len(holes)), [len(hole) for hole in holes])
    vertex = np.concatenate([np.arange(len(hole)) for hole in holes])
    points = np.concatenate(holes)
    tried_count = 0
    neighbours = 1
    while tried_count < len(ring):
        neighbours = min(neighbours, len(ring))
        distance, at_ring = tree.query(points, k=np.arange(tried_count + 1, neighbours + 1))
        for flat in np.argsort(distance, axis=None, kind="stable"):
            point, rank = np.unravel_index(flat, distance.shape)
            start, end = ring[at_ring[point, rank]], points[point]
            if _is_clear(start, end, interior, bridges):
                return int(owner[point]), int(at_ring[point, rank]), int(vertex[point])
        tried_count, neighbours = neighbours, neighbours * 4
    raise ValueError(f"no bridge from a hole to its exterior: {interior.wkt[:200]} is not a valid polygon")


def _is_clear(start: np.ndarray, end: np.ndarray, interior: shapely.Polygon, bridges: list[shapely.LineString]) -> bool:
    if np.array_equal(start, end):
        return True
    line = shapely.LineString([start, end])
    return bool(interior.covers(line)) and not any(line.crosses(bridge) for bridge in bridges)


def split_ring(ring: np.ndarray) -> list[Polygon]:
    """Undo the cuts of a ring: its parts with their holes.

    Wherever the ring comes back to a point, a loop is taken off; what was walked there and back is left with two points
    and goes. Rings without cuts come back as they are.

    Returns:
        Polygons that fill the same pixels under the even-odd rule, the first vertex's part first.
    """
    loops = [loop for loop in _loops(np.asarray(ring, dtype=np.float64)) if signed_area(loop) != 0]
    shapes = [shapely.make_valid(shapely.Polygon(loop)) for loop in loops]
    depth, parent = _nesting(loops, shapes)
    return [
        Polygon(
            _orient(loops[number], 1),
            tuple(_orient(loops[n], -1) for n in range(len(loops)) if parent[n] == number and depth[n] % 2),
        )
        for number in range(len(loops))
        if depth[number] % 2 == 0
    ]


def _loops(ring: np.ndarray) -> list[np.ndarray]:
    """Simple loops, of at least three points, that make up a ring which passes points more than once."""
    loops: list[np.ndarray] = []
    path: list[tuple[float, float]] = []
    place: dict[tuple[float, float], int] = {}
    for point in map(tuple, ring.tolist()):
        start = place.get(point)
        if start is None:
            place[point] = len(path)
            path.append(point)
            continue
        loop = path[start:]
        for loop_point in path[start + 1 :]:
            del place[loop_point]
        del path[start + 1 :]
        if len(loop) > 2:
            loops.append(np.array(loop))
    if len(path) > 2:
        loops.append(np.array(path))
    return loops[::-1]


def _nesting(loops: Sequence[np.ndarray], shapes: Sequence[shapely.Geometry]) -> tuple[list[int], list[int]]:
    """How many other loops each loop lies in, and the innermost of those; -1 for none."""
    depth, parent = [0] * len(loops), [-1] * len(loops)
    if len(loops) == 1:
        return depth, parent
    areas = [abs(signed_area(loop)) for loop in loops]
    for inner, shape in enumerate(shapes):
        point = shape.representative_point()
        containers = [n for n in range(len(loops)) if areas[n] > areas[inner] and shapes[n].contains(point)]
        depth[inner] = len(containers)
        parent[inner] = min(containers, key=lambda n: areas[n], default=-1)
    return depth, parent


def _orient(loop: np.ndarray, sign: int) -> np.ndarray:
    return loop if signed_area(loop) * sign > 0 else loop[::-1]
