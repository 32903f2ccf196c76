"""The pyramid of a view's features, whose finest map is computed only where nodes read it.

The finest map has three quarters of the pyramid's cells, and a view's nodes read about one in twenty of them. So it is
kept as what it is made of, and its cells are computed when nodes ask for them.

Shape shorthand: V views, C channels, S = 128 the side of the finest map, K cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.detectors.nanodet import STEM_CHANNELS, TRUNK_CHANNELS
from model.mask_head.roi_features import Reads, RoIPyramid, rows_of

#: Input pixels a cell of the pyramid's maps, finest first.
STRIDES = (2.0, 4.0, 8.0, 16.0, 32.0)
#: The map that the quadtree's root level (64 x 64 of a view) is read from.
ROOT_MAP = 1


class ViewPyramid(nn.Module):
    """Five maps of equal width from the trunk's features at strides 2 to 32, with the view's mean as context."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (STEM_CHANNELS, *TRUNK_CHANNELS)
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)
        self.context = nn.Conv2d(TRUNK_CHANNELS[-1], channels, 1)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], FinestMap]:
        """(V, C, h, w) maps, finest first; the first is without values, which `FinestMap` computes."""
        stem, *coarser_features = features
        maps = [layer(feature) for layer, feature in zip(self.lateral[1:], coarser_features, strict=True)]
        maps[-1] = maps[-1] + self.context(coarser_features[-1].mean((2, 3), keepdim=True))
        for finer in range(len(maps) - 2, -1, -1):
            maps[finer] = maps[finer] + F.interpolate(maps[finer + 1], maps[finer].shape[-2:], mode="nearest")
        smooth_maps = [layer(level) for layer, level in zip(self.smooth[1:], maps, strict=True)]
        lateral, smooth = self.lateral[0], self.smooth[0]
        assert isinstance(lateral, nn.Conv2d)
        assert isinstance(smooth, nn.Conv2d)
        no_values = stem.new_zeros(()).expand(len(stem), smooth.out_channels, *stem.shape[-2:])
        return [no_values, *smooth_maps], FinestMap(stem, maps[0], lateral, smooth)


@dataclass(frozen=True)
class FinestMap:
    """smooth(lateral(stem) + the coarser map, each cell copied to its four quadrants), cell by cell.

    Attributes:
        stem: (V, C', S, S). coarser: (V, C, S / 2, S / 2).
        lateral: 1x1 convolution. smooth: 3x3 convolution with a padding of one.
    """

    stem: Tensor
    coarser: Tensor
    lateral: nn.Conv2d
    smooth: nn.Conv2d

    def whole(self) -> Tensor:
        """All of it, (V, C, S, S)."""
        return self.smooth(self.lateral(self.stem) + F.interpolate(self.coarser, self.stem.shape[-2:], mode="nearest"))

    def rows(self, cells: Tensor) -> Tensor:
        """Values (K, C) of cells that are numbered as `rows_of` the map has them."""
        side = self.stem.shape[-1]
        step = torch.arange(-1, 2, device=cells.device)
        y = (cells.div(side, rounding_mode="floor") % side)[:, None] + step.repeat_interleave(3)
        x = (cells % side)[:, None] + step.repeat(3)
        is_inside = (y >= 0) & (y < side) & (x >= 0) & (x < side)
        y, x = y.clamp(0, side - 1), x.clamp(0, side - 1)
        view = cells.div(side * side, rounding_mode="floor")[:, None]
        stem_rows = rows_of(self.stem)[((view * side + y) * side + x).flatten()]
        coarser_cells = (view * (side // 2) + y.div(2, rounding_mode="floor")) * (side // 2)
        coarser_rows = rows_of(self.coarser)[(coarser_cells + x.div(2, rounding_mode="floor")).flatten()]
        values = F.linear(stem_rows, self.lateral.weight.flatten(1), self.lateral.bias) + coarser_rows
        patches = (values * is_inside.flatten()[:, None].to(values.dtype)).unflatten(0, (-1, 9)).flatten(1)
        return F.linear(patches, self.smooth.weight.permute(0, 2, 3, 1).flatten(1), self.smooth.bias)

    def project(self, weight: Tensor) -> Tensor:
        """The whole map through a 1x1 convolution without bias, weight (C', C, 1, 1): (V, C', S, S).

        The three convolutions are linear, so the last two are joined to one value a tap of the 3x3 window, and these
        are computed on the coarser map and on the stem before they meet.
        """
        outputs, dtype = len(weight), self.stem.dtype
        taps = torch.einsum("oc,cihw->ohwi", weight[:, :, 0, 0].float(), self.smooth.weight.float()).flatten(0, 2)
        lateral_weight, lateral_bias = self.lateral.weight.flatten(1).float(), self.lateral.bias
        assert lateral_bias is not None
        assert self.smooth.bias is not None
        of_stem = F.conv2d(
            self.stem, (taps @ lateral_weight)[:, :, None, None].to(dtype), (taps @ lateral_bias.float()).to(dtype)
        )
        of_coarser = F.conv2d(self.coarser, taps[:, :, None, None].to(dtype))
        height, width = self.stem.shape[-2:]
        tap_maps = (of_stem + F.interpolate(of_coarser, (height, width), mode="nearest")).contiguous()
        padded_maps = F.pad(tap_maps, (1, 1, 1, 1)).unflatten(1, (outputs, 3, 3))
        result = (weight[:, :, 0, 0].float() @ self.smooth.bias.float()).to(dtype)[:, None, None]
        for dy in range(3):
            for dx in range(3):
                result = result + padded_maps[:, :, dy, dx, dy : dy + height, dx : dx + width]
        return result


@dataclass(frozen=True)
class ViewFeatures(RoIPyramid):
    """Features of views whose RoI is the whole view: the maps themselves are what RoIAlign would give.

    Attributes:
        finest: computes the cells of the first map, which is without values then.
    """

    finest: FinestMap | None = None

    def dense(self, depth: int, size: int) -> Tensor:
        """A whole quadtree level, (R, C, size, size)."""
        level = self.finest.whole() if self.finest is not None and depth == ROOT_MAP else self.maps[ROOT_MAP - depth]
        every_view = len(self.rois) == len(level) and bool((self.rois[:, 0].diff() == 1).all())
        return level if level.shape[-1] == size and every_view else super().dense(depth, size)

    def project(self, weight: Tensor) -> RoIPyramid:
        """The pyramid of maps put through a 1x1 convolution without bias, weight (C', C, 1, 1)."""
        if self.finest is None:
            return super().project(weight)
        coarser_maps = [F.conv2d(level, weight.to(level.dtype)) for level in self.maps[1:]]
        return replace(self, maps=[self.finest.project(weight), *coarser_maps], finest=None)

    def tables(self, reads: list[Reads]) -> tuple[list[Tensor], list[Reads]]:
        """Rows of every map, of the first one those alone that are read; and the reads by these rows' numbers."""
        if self.finest is None:
            return super().tables(reads)
        parts = [read.cells.flatten() for read in reads if read.map_index == 0]
        cells = torch.unique(torch.cat(parts)) if parts else self.rois.new_zeros(0, dtype=torch.int64)
        tables = [self.finest.rows(cells), *map(rows_of, self.maps[1:])]
        return tables, [
            replace(read, cells=torch.searchsorted(cells, read.cells)) if read.map_index == 0 else read
            for read in reads
        ]
