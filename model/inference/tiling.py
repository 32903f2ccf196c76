"""Large images: predicted tile by tile at full resolution, objects that a tile's border cut joined again.

Free of torch: it works with anything that maps images to instances. Besides the tiles the whole image is looked at
once, made small: objects larger than a tile are recognised there, and tell which pieces belong together.

Two fragments of different tiles show one object when they have the same class and agree where both tiles look. Of an
object that some tile shows whole, that tile's outline is taken as it is. Of one that is cut everywhere, each pixel is
decided by the tile in which it lies farthest from a cut: networks are weakest at the border of what they see.

Shapes, all in pixels: H x W the image, h x w a tile or the bounding box of one of K fragments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from model.instance import Instance, box_of

Predict = Callable[[list[np.ndarray]], list[list[Instance]]]


@dataclass(frozen=True)
class Tiling:
    """How large images are cut.

    Attributes:
        above_px: images whose longer edge is longer than this are cut; 0 never cuts.
        tile_px: edge of a tile.
        overlap_px: neighbouring tiles share at least this; objects smaller than it are whole in some tile.
        overview: look at the whole image as well, made as small as a tile.

    Raises:
        ValueError: a tile is not larger than the overlap.
    """

    above_px: int = 4096
    tile_px: int = 1024
    overlap_px: int = 256
    overview: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.overlap_px < self.tile_px:
            raise ValueError(
                f"overlap_px is {self.overlap_px} and tile_px {self.tile_px}; expected 0 < overlap_px < tile_px"
            )

    def cuts(self, image: np.ndarray) -> bool:
        """Whether an H x W x 3 image is large enough to be cut."""
        return 0 < self.above_px < max(image.shape[:2])


def tiles_of(height: int, width: int, tiling: Tiling) -> list[Tile]:
    """Tiles that cover an image, evenly spread, row by row."""
    rows = _starts(height, tiling)
    columns = _starts(width, tiling)
    edge = tiling.tile_px
    return [
        Tile(top, left, min(top + edge, height), min(left + edge, width), height, width)
        for top in rows
        for left in columns
    ]


def _starts(length: int, tiling: Tiling) -> list[int]:
    free = length - tiling.tile_px
    if free <= 0:
        return [0]
    count = -(-free // (tiling.tile_px - tiling.overlap_px)) + 1
    return [round(free * number / (count - 1)) for number in range(count)]


def predict_tiled(predict: Predict, image: np.ndarray, tiling: Tiling, *, batch: int = 1) -> list[Instance]:
    """Instances of an image that is looked at through overlapping tiles.

    Args:
        batch: tiles given to the predictor at a time.

    Returns:
        Instances by falling score; masks are H x W, at the tiles' own resolution.
    """
    height, width = image.shape[:2]
    tiles = tiles_of(height, width, tiling)
    fragments: list[Fragment] = []
    for start in range(0, len(tiles), batch):
        batch_tiles = tiles[start : start + batch]
        parts = [np.ascontiguousarray(image[t.top : t.bottom, t.left : t.right]) for t in batch_tiles]
        for tile, instances in zip(batch_tiles, predict(parts), strict=True):
            fragments += [piece for instance in instances if (piece := instance_in_image(instance, tile)) is not None]
    if tiling.overview and len(tiles) > 1:
        fragments += _overview(predict, image, tiling)
    objects = sorted(merge_tiles(fragments, tiles), key=lambda fragment: -fragment.score)
    return [_instance(fragment, height, width) for fragment in objects]


def _overview(predict: Predict, image: np.ndarray, tiling: Tiling) -> list[Fragment]:
    """What is found in the whole image made small, in the whole image's pixels."""
    height, width = image.shape[:2]
    scale = tiling.tile_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    tile = Tile(0, 0, height, width, height, width, is_overview=True)
    (instances,) = predict([small])
    pieces = (instance_in_image(instance, Tile(0, 0, size[1], size[0], size[1], size[0])) for instance in instances)
    return [_enlarge(piece, tile, size) for piece in pieces if piece is not None]


def _enlarge(piece: Fragment, tile: Tile, size: tuple[int, int]) -> Fragment:
    """A fragment of the small image (width, height) in the pixels of the whole one; only its own box is enlarged."""
    tops, lefts = (
        np.arange(length + 1) * full // length for length, full in ((size[1], tile.height), (size[0], tile.width))
    )
    rows = np.diff(tops[piece.top : piece.top + piece.mask_hw.shape[0] + 1])
    columns = np.diff(lefts[piece.left : piece.left + piece.mask_hw.shape[1] + 1])
    mask = piece.mask_hw.repeat(rows, axis=0).repeat(columns, axis=1)
    return dataclasses.replace(piece, tile=tile, top=int(tops[piece.top]), left=int(lefts[piece.left]), mask_hw=mask)


def _instance(fragment: Fragment, height: int, width: int) -> Instance:
    # Pages of zeros that are never written take no memory, so many objects of a large image fit.
    mask = np.zeros((height, width), bool)
    bottom, right = fragment.bottom, fragment.right
    mask[fragment.top : bottom, fragment.left : right] = fragment.mask_hw
    box = (float(fragment.left), float(fragment.top), float(right), float(bottom))
    return Instance(box, fragment.label, fragment.score, mask, fragment.uncertainty)


# Least intersection over union, where both tiles look, of two fragments of one object.
LEAST_AGREEMENT = 0.5
# The same with the overview, whose outlines are coarse; above one half it cannot agree with two objects of a tile.
LEAST_AGREEMENT_OVERVIEW = 0.55
# A fragment within this share of the tile's edge from a cut is cut; outlines often end just before it.
CUT_MARGIN = 1 / 128
# A piece that a whole object covers to this share is no object of its own.
COVERED = 0.8


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of an image of `height` x `width`; `is_overview`: all of the image, seen from afar."""

    top: int
    left: int
    bottom: int
    right: int
    height: int
    width: int
    is_overview: bool = False

    @property
    def cuts(self) -> tuple[bool, bool, bool, bool]:
        """Which sides (top, left, bottom, right) are inside the image."""
        return self.top > 0, self.left > 0, self.bottom < self.height, self.right < self.width

    def shows_whole(self, top: int, left: int, bottom: int, right: int) -> bool:
        """Whether a box lies within the tile and away from its cuts."""
        margin = max(1, round(max(self.bottom - self.top, self.right - self.left) * CUT_MARGIN))
        inset = [margin if cut else 0 for cut in self.cuts]
        return (
            top >= self.top + inset[0]
            and left >= self.left + inset[1]
            and bottom <= self.bottom - inset[2]
            and right <= self.right - inset[3]
        )

    def trust(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """For each pixel (h x w, float) its distance to the nearest cut; the overview is trusted least."""
        if self.is_overview:
            return np.full((len(rows), len(columns)), 0.5, np.float32)
        uncut_distance = float(self.height + self.width)
        top, left, bottom, right = self.cuts
        vertical = np.minimum(
            rows - self.top + 1 if top else uncut_distance, self.bottom - rows if bottom else uncut_distance
        ) * np.ones(len(rows))
        horizontal = np.minimum(
            columns - self.left + 1 if left else uncut_distance, self.right - columns if right else uncut_distance
        ) * np.ones(len(columns))
        distance: np.ndarray = np.minimum.outer(vertical.astype(np.float32), horizontal.astype(np.float32))
        return distance


@dataclass(frozen=True, slots=True)
class Fragment:
    """What one tile shows of an object.

    Attributes:
        top, left: where `mask_hw` lies in the image.
        mask_hw: bool h x w, no empty row or column at its borders.
    """

    tile: Tile
    label: str
    score: float
    uncertainty: float
    top: int
    left: int
    mask_hw: np.ndarray

    @property
    def bottom(self) -> int:
        return self.top + self.mask_hw.shape[0]

    @property
    def right(self) -> int:
        return self.left + self.mask_hw.shape[1]

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.top, self.left, self.bottom, self.right

    @property
    def is_whole(self) -> bool:
        return not self.tile.is_overview and self.tile.shows_whole(*self.box)

    def within(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """The mask in a rectangle of the image, bool, the rectangle's size."""
        mask = np.zeros((bottom - top, right - left), bool)
        t, b = max(top, self.top), min(bottom, self.bottom)
        s, e = max(left, self.left), min(right, self.right)
        if t < b and s < e:
            part = self.mask_hw[t - self.top : b - self.top, s - self.left : e - self.left]
            mask[t - top : b - top, s - left : e - left] = part
        return mask


def instance_in_image(instance: Instance, tile: Tile) -> Fragment | None:
    """An instance of a tile's own image in the whole image's pixels; None when its mask is empty."""
    fragment = Fragment(
        tile, instance.label, instance.score, instance.uncertainty, tile.top, tile.left, instance.mask_hw
    )
    return _trim(fragment)


def _trim(fragment: Fragment) -> Fragment | None:
    """Cut empty rows and columns off the mask's borders; None where nothing is left."""
    left, top, right, bottom = box_of(fragment.mask_hw)
    if right == left:
        return None
    mask_hw = fragment.mask_hw[top:bottom, left:right].copy()
    return dataclasses.replace(fragment, top=fragment.top + top, left=fragment.left + left, mask_hw=mask_hw)


def merge_tiles(fragments: Sequence[Fragment], tiles: Sequence[Tile]) -> list[Fragment]:
    """One fragment for each object; fragments that another tile shows better are left out."""
    agreements = _agreements(fragments)
    objects: list[Fragment] = []
    for group in _groups(len(fragments), agreements):
        objects += _resolve_group(group, fragments, agreements, tiles)
    return [fragment for fragment in objects if not _is_piece_of_another(fragment, objects)]


def _agreements(fragments: Sequence[Fragment]) -> dict[int, set[int]]:
    """For each fragment those of other tiles that show the same object."""
    boxes = np.array([fragment.box for fragment in fragments]).reshape(-1, 4)
    agreements: dict[int, set[int]] = {number: set() for number in range(len(fragments))}
    for i, fragment in enumerate(fragments):
        is_touching = (boxes[i + 1 :, :2] < boxes[i, 2:]).all(1) & (boxes[i + 1 :, 2:] > boxes[i, :2]).all(1)
        for j in (np.flatnonzero(is_touching) + i + 1).tolist():
            if _agree(fragment, fragments[j]):
                agreements[i].add(j)
                agreements[j].add(i)
    return agreements


def _agree(fragment: Fragment, neighbour: Fragment) -> bool:
    if fragment.label != neighbour.label or fragment.tile == neighbour.tile:
        return False
    zone = (
        max(fragment.tile.top, neighbour.tile.top),
        max(fragment.tile.left, neighbour.tile.left),
        min(fragment.tile.bottom, neighbour.tile.bottom),
        min(fragment.tile.right, neighbour.tile.right),
    )
    # Outside both boxes neither has a pixel.
    top = max(zone[0], min(fragment.top, neighbour.top))
    left = max(zone[1], min(fragment.left, neighbour.left))
    bottom = min(zone[2], max(fragment.bottom, neighbour.bottom))
    right = min(zone[3], max(fragment.right, neighbour.right))
    if top >= bottom or left >= right:
        return False
    a, b = fragment.within(top, left, bottom, right), neighbour.within(top, left, bottom, right)
    union = int((a | b).sum())
    least = LEAST_AGREEMENT_OVERVIEW if fragment.tile.is_overview or neighbour.tile.is_overview else LEAST_AGREEMENT
    return union > 0 and int((a & b).sum()) >= least * union


def _groups(count: int, agreements: dict[int, set[int]]) -> list[list[int]]:
    """Group fragments that agree, directly or through others; by their numbers."""
    pairs = np.array([(i, j) for i, partners in agreements.items() for j in partners], int).reshape(-1, 2).T
    graph = coo_array((np.ones(pairs.shape[1], bool), pairs), (count, count))
    groups, group_of = connected_components(graph, directed=False)
    return [np.flatnonzero(group_of == group).tolist() for group in range(groups)]


def _resolve_group(
    group: Sequence[int], fragments: Sequence[Fragment], agreements: dict[int, set[int]], tiles: Sequence[Tile]
) -> list[Fragment]:
    """The objects of a group: those that some tile shows whole, else one made of all pieces."""
    whole_numbers: list[int] = []
    for number in sorted((n for n in group if fragments[n].is_whole), key=lambda n: -fragments[n].score):
        if not agreements[number] & set(whole_numbers):
            whole_numbers.append(number)
    if whole_numbers:
        return [fragments[number] for number in whole_numbers]
    pieces = [fragments[number] for number in group]
    composite = _compose_pieces(pieces)
    if composite is None:
        return []
    # Only one tile found it, and a tile that shows the place whole did not: it is no object.
    is_alone = len({piece.tile for piece in pieces}) == 1
    if is_alone and any(tile.shows_whole(*composite.box) for tile in tiles if tile != composite.tile):
        return []
    return [composite]


def _compose_pieces(pieces: Sequence[Fragment]) -> Fragment | None:
    """One object of several pieces; None when nothing of it is left."""
    top, left = min(piece.top for piece in pieces), min(piece.left for piece in pieces)
    bottom, right = max(piece.bottom for piece in pieces), max(piece.right for piece in pieces)
    trust_map = np.zeros((bottom - top, right - left), np.float32)
    mask = np.zeros(trust_map.shape, bool)
    for tile in dict.fromkeys(piece.tile for piece in pieces):
        t, b = max(top, tile.top), min(bottom, tile.bottom)
        s, e = max(left, tile.left), min(right, tile.right)
        tile_mask = np.logical_or.reduce([piece.within(t, s, b, e) for piece in pieces if piece.tile == tile])
        trust = tile.trust(np.arange(t, b), np.arange(s, e))
        place = (slice(t - top, b - top), slice(s - left, e - left))
        is_better = trust > trust_map[place]
        mask[place] = np.where(is_better, tile_mask, mask[place])
        trust_map[place] = np.maximum(trust, trust_map[place])
    areas = np.array([piece.mask_hw.sum() for piece in pieces], float)
    score = float(np.average([piece.score for piece in pieces], weights=areas))
    uncertainty = float(np.average([piece.uncertainty for piece in pieces], weights=areas))
    first_piece = pieces[0]
    return _trim(Fragment(first_piece.tile, first_piece.label, score, uncertainty, top, left, mask))


def _is_piece_of_another(fragment: Fragment, objects: Sequence[Fragment]) -> bool:
    """Whether a cut piece lies within a larger object that was seen better.

    Whatever its class: a part of a tool is easily taken for another tool. Masks show what is visible, so that an object
    in front of another is not covered by it.
    """
    if fragment.is_whole or fragment.tile.is_overview:
        return False
    area = fragment.mask_hw.sum()
    return any(
        candidate is not fragment
        and candidate.mask_hw.sum() > area
        and int((candidate.within(*fragment.box) & fragment.mask_hw).sum()) >= COVERED * area
        for candidate in objects
    )
