"""Outlines of the objects on generated scenes: thin, jagged, with holes, and random within their kind.

Coordinates are unitless: x and y within [-1, 1], x to the right, y down; the long axis lies along x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Points = np.ndarray


@dataclass(frozen=True, slots=True)
class Outline:
    """Outline of an object: filled polygons, holes and creases.

    Attributes:
        solids: (N, 2) polygons whose union is filled.
        holes: (N, 2) polygons cut out of that union.
        creases: (N, 2) polylines on the surface (veins, grooves); they shade it and do not change its mask.
    """

    solids: tuple[Points, ...]
    holes: tuple[Points, ...] = ()
    creases: tuple[Points, ...] = ()


def disc(centre: tuple[float, float], radius: float, corners: int = 48, turn: float = 0.0) -> Points:
    """A regular polygon of shape (corners, 2): a disc when there are many corners."""
    angles = np.arange(corners) * (2 * np.pi / corners) + turn
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + np.asarray(centre)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """An axis-aligned rectangle of shape (4, 2)."""
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def polar(radii: np.ndarray, angles: np.ndarray) -> Points:
    """Points of shape (N, 2) from radii and angles of shape (N,)."""
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def gear(rng: np.random.Generator) -> Outline:
    """A toothed wheel with a bore, often with lightening holes."""
    teeth = int(rng.integers(10, 21))
    root = 1 - rng.uniform(0.14, 0.24)
    pitch = 2 * np.pi / teeth
    foot, tip = rng.uniform(0.26, 0.32) * pitch, rng.uniform(0.12, 0.2) * pitch
    centres = np.repeat(np.arange(teeth) * pitch, 4)
    angles = centres + np.tile([-foot, -tip, tip, foot], teeth)
    radii = np.tile([root, 1.0, 1.0, root], teeth)
    bore = rng.uniform(0.12, 0.26)
    holes = [disc((0, 0), bore)]
    if rng.random() < 0.6:
        holes += _lightening_holes(rng, (bore + root) / 2, (root - bore) / 2)
    return Outline((polar(radii, angles),), tuple(holes), (disc((0, 0), root * 0.93), disc((0, 0), bore + 0.06)))


def _lightening_holes(rng: np.random.Generator, at_radius: float, room: float) -> list[Points]:
    count = int(rng.integers(3, 7))
    radius = min(rng.uniform(0.5, 0.75) * room, 0.7 * at_radius * np.sin(np.pi / count))
    centres = polar(np.full(count, at_radius), np.arange(count) * 2 * np.pi / count)
    return [disc((float(x), float(y)), radius) for x, y in centres]


def star(rng: np.random.Generator) -> Outline:
    """A star of five to nine slim rays."""
    rays = int(rng.integers(5, 10))
    inner = rng.uniform(0.3, 0.5)
    angles = np.arange(2 * rays) * np.pi / rays
    radii = np.tile([1.0, inner], rays) * np.where(np.arange(2 * rays) % 2, 1, rng.uniform(0.93, 1, 2 * rays))
    ridges = tuple(np.array([[0.0, 0.0], point]) for point in polar(radii[::2] * 0.95, angles[::2]))
    return Outline((polar(radii, angles),), (), ridges)


def leaf(rng: np.random.Generator) -> Outline:
    """A leaf with a saw-toothed edge and a thin stalk: long like a nettle's or lobed like a maple's."""
    return _maple_leaf(rng) if rng.random() < 0.45 else _nettle_leaf(rng)


def _nettle_leaf(rng: np.random.Generator) -> Outline:
    teeth, depth = int(rng.integers(9, 18)), rng.uniform(0.18, 0.34)
    at = np.repeat(np.linspace(0.02, 1, teeth), 2)[1:] + np.tile([0.0, 0.015], teeth)[1:]
    half = rng.uniform(0.34, 0.55) * np.sin(np.pi * np.clip(at, 0, 1) ** rng.uniform(0.6, 0.8)) + 0.01
    half *= np.where(np.arange(len(at)) % 2, 1 - depth, 1.0)
    x = 1 - 1.45 * at
    upper, lower = np.stack([x, half], 1), np.stack([x, -half], 1)[::-1]
    bend = rng.uniform(-0.18, 0.18)
    blade = _bent(np.concatenate([[[1.0, 0.0]], upper, lower]), bend)
    spine = np.linspace(0.95, -1.0, 12)
    midrib = _bent(np.stack([spine, np.zeros(12)], 1), bend)
    veins = [_bent(np.array([[s, 0.0], [s + 0.2, side * 0.3]]), bend) for s in spine[2:-4] for side in (-1, 1)]
    return Outline((blade, _ribbon(midrib[5:], 0.03)), (), (midrib, *veins))


def _maple_leaf(rng: np.random.Generator) -> Outline:
    lobes = 5
    angles = np.linspace(-0.86 * np.pi, 0.86 * np.pi, 120)
    lobe = np.abs(np.cos(angles * lobes / 2 / 0.95)) ** rng.uniform(0.9, 1.5)
    saw = 1 - rng.uniform(0.12, 0.24) * ((np.arange(120) % 6) / 5)
    radii = (rng.uniform(0.28, 0.38) + 0.62 * lobe) * saw * (0.86 + 0.14 * np.cos(angles))
    blade = np.concatenate([polar(radii, angles), [[-0.12, 0.0]]])
    stalk = _ribbon(_bent(np.array([[-0.05, 0.0], [-0.5, 0.0], [-1.0, 0.0]]), rng.uniform(-0.2, 0.2)), 0.032)
    peaks = np.arange(-2, 3) * 2 * np.pi / lobes * 0.95
    veins = [np.array([[-0.1, 0.0], point]) for point in polar(np.full(5, 0.75), peaks)]
    return Outline((blade, stalk), (), tuple(veins))


def _bent(points: Points, bend: float) -> Points:
    return points + np.stack([np.zeros(len(points)), bend * (points[:, 0] ** 2 - 0.3)], axis=1)


def _ribbon(line: Points, half_width: float) -> Points:
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], 1) / np.linalg.norm(along, axis=1, keepdims=True) * half_width
    return np.concatenate([line + across, (line - across)[::-1]])


def key(rng: np.random.Generator) -> Outline:
    """A key: a bow with a hole, a thin shaft, a bit of unequal teeth."""
    bow, shaft = rng.uniform(0.28, 0.38), rng.uniform(0.065, 0.1)
    centre = (-1 + bow, 0.0)
    corners = int(rng.choice([6, 8, 48]))
    solids = [disc(centre, bow, corners), box(-1 + bow, -shaft, 1, shaft)]
    tooth, at = rng.uniform(0.07, 0.1), 0.98
    for _ in range(int(rng.integers(3, 6))):
        solids.append(box(at - tooth, 0, at, shaft + rng.uniform(0.1, 0.28)))
        at -= tooth * rng.uniform(1.5, 2.1)
    if rng.random() < 0.5:
        solids.append(disc((-1 + 2 * bow + 0.05, 0.0), shaft * 1.7, 24))
    hole = disc((centre[0] - bow * rng.uniform(0, 0.25), 0.0), bow * rng.uniform(0.35, 0.66), corners)
    return Outline(tuple(solids), (hole,), (np.array([[-1 + 2.2 * bow, 0.0], [0.95, 0.0]]),))


def fork(rng: np.random.Generator) -> Outline:
    """A table fork: three or four thin tines on a slim, swelling handle."""
    tines, head = int(rng.integers(3, 5)), rng.uniform(0.24, 0.31)
    root, neck = rng.uniform(0.42, 0.52), rng.uniform(0.05, 0.07)
    x = np.array([-1, -0.97, -0.9, -0.5, -0.1, 0.12, 0.22, 0.32, root])
    half = np.array([0.04, 0.1, 0.13, 0.1, neck, neck, head * 0.62, head * 0.95, head])
    body = np.concatenate([np.stack([x, half], 1), np.stack([x, -half], 1)[::-1]])
    thick = head * 2 / (tines * 2 - 1) * rng.uniform(0.9, 1.15) / 2
    solids = [body]
    for y in np.linspace(-head + thick, head - thick, tines):
        ends = [
            [root - 0.03, y - thick],
            [0.9, y - thick * 0.75],
            [1, y - 0.008],
            [1, y + 0.008],
            [0.9, y + thick * 0.75],
            [root - 0.03, y + thick],
        ]
        solids.append(np.array(ends))
    return Outline(tuple(solids), (), (np.array([[-0.85, 0.0], [-0.2, 0.0]]),))


def spanner(rng: np.random.Generator) -> Outline:
    """A combination spanner: a ring with a many-cornered hole on one end, an open jaw on the other."""
    ring, jaw, shaft = rng.uniform(0.23, 0.28), rng.uniform(0.27, 0.33), rng.uniform(0.08, 0.12)
    gap = jaw * rng.uniform(0.38, 0.5)
    tilt = rng.uniform(-0.35, 0.35)
    ring_at, jaw_at = (-1 + ring, 0.0), (0.98 - jaw, 0.0)
    left, right = ring_at[0], jaw_at[0]
    handle = np.array([[left, -shaft], [right, -shaft * 1.25], [right, shaft * 1.25], [left, shaft]])
    solids = (disc(ring_at, ring), disc(jaw_at, jaw, 40), handle)
    rotation = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    mouth = box(-0.25 * jaw, -gap, 2 * jaw, gap) @ rotation
    hole = disc(ring_at, ring * rng.uniform(0.5, 0.66), int(rng.choice([6, 12])), rng.uniform(0, 1))
    groove = box(ring_at[0] + ring * 1.25, -shaft * 0.45, jaw_at[0] - jaw * 1.2, shaft * 0.45)
    return Outline(solids, (hole, mouth + np.asarray(jaw_at)), (np.concatenate([groove, groove[:1]]),))


def pebble(rng: np.random.Generator) -> Outline:
    """A smooth stone: clutter that is no class."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    wobble = sum(rng.uniform(0, 0.12) * np.cos(k * angles + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    return Outline((polar(0.85 + np.asarray(wobble), angles) * np.array([1.0, rng.uniform(0.5, 0.95)]),))


def stick(rng: np.random.Generator) -> Outline:
    """A bent twig: clutter that is no class, as thin as the shafts that are."""
    x = np.linspace(-1, 1, 14)
    y = np.cumsum(rng.normal(0, 0.03, 14))
    return Outline((_ribbon(np.stack([x, y - y.mean()], 1), rng.uniform(0.018, 0.04)),))


SHAPES: dict[str, Callable[[np.random.Generator], Outline]] = {
    "gear": gear,
    "leaf": leaf,
    "key": key,
    "star": star,
    "fork": fork,
    "spanner": spanner,
}
CLUTTER: tuple[Callable[[np.random.Generator], Outline], ...] = (pebble, stick)
