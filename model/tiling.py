"""Large images: predicted tile by tile at full resolution, cut objects sewn together again (`model.seams`).

Knows no torch: it works with anything that maps images to instances. Besides the tiles the whole image is looked at
once, made small: objects larger than a tile are recognised there, and tell which pieces belong together.

Shape shorthand in this module: H x W the image's size, h x w a tile's, all in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from model.instance import Instance
from model.seams import Fragment, Tile, cropped, sewn

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
        predict: a predictor.
        image: H x W x 3 uint8.
        tiling: how to cut.
        batch: tiles given to the predictor at a time.

    Returns:
        Instances by falling score; masks are H x W, at the tiles' own resolution.
    """
    height, width = image.shape[:2]
    tiles = tiles_of(height, width, tiling)
    fragments: list[Fragment] = []
    for start in range(0, len(tiles), batch):
        chosen = tiles[start : start + batch]
        parts = [np.ascontiguousarray(image[t.top : t.bottom, t.left : t.right]) for t in chosen]
        for tile, found in zip(chosen, predict(parts), strict=True):
            fragments += [piece for instance in found if (piece := cropped(instance, tile)) is not None]
    if tiling.overview and len(tiles) > 1:
        fragments += _overview(predict, image, tiling)
    objects = sorted(sewn(fragments, tiles), key=lambda found: -found.score)
    return [_instance(found, height, width) for found in objects]


def _overview(predict: Predict, image: np.ndarray, tiling: Tiling) -> list[Fragment]:
    """What is found in the whole image made small, in the whole image's pixels."""
    height, width = image.shape[:2]
    scale = tiling.tile_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    whole = Tile(0, 0, height, width, height, width, is_overview=True)
    (found,) = predict([small])
    pieces = (cropped(instance, Tile(0, 0, size[1], size[0], size[1], size[0])) for instance in found)
    return [_enlarged(piece, whole, size) for piece in pieces if piece is not None]


def _enlarged(piece: Fragment, whole: Tile, size: tuple[int, int]) -> Fragment:
    """A fragment of the small image (width, height) in the pixels of the whole one; only its own box is enlarged."""
    tops, lefts = (
        np.arange(length + 1) * full // length for length, full in ((size[1], whole.height), (size[0], whole.width))
    )
    rows = np.diff(tops[piece.top : piece.top + piece.mask_hw.shape[0] + 1])
    columns = np.diff(lefts[piece.left : piece.left + piece.mask_hw.shape[1] + 1])
    mask = piece.mask_hw.repeat(rows, axis=0).repeat(columns, axis=1)
    return dataclasses.replace(piece, tile=whole, top=int(tops[piece.top]), left=int(lefts[piece.left]), mask_hw=mask)


def _instance(found: Fragment, height: int, width: int) -> Instance:
    # Pages of zeros that nobody writes take no memory, so many objects of a large image fit.
    mask = np.zeros((height, width), bool)
    bottom, right = found.bottom, found.right
    mask[found.top : bottom, found.left : right] = found.mask_hw
    box = (float(found.left), float(found.top), float(right), float(bottom))
    return Instance(box, found.label, found.score, mask, found.uncertainty)
