"""RoI features for the mask branch: a dense coarse grid, and single places of finer grids without pooling the rest.

Shape shorthand: N images, R RoIs, C channels, Q nodes, H x W of a feature map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from model.mask_head.encoder_layers import in_bf16_on_cpu
from model.mask_head.quadtree import Nodes


@dataclass(frozen=True)
class RoIPyramid:
    """Features of R RoIs.

    Attributes:
        coarse: (R, C, 14, 14) RoIAlign features of level i, the detector's level rule.
        semantic: (N, C, H, W) output of the branch on P2 (its sum with P2 is the finest map below), or None.
        maps: FPN maps P2.., the first with the branch added where there is one, unless ``branch`` is still to be.
        rois: (R, 5) image index and box in pixels of the network's input.
        levels: (R,) index into ``maps`` of the coarse features' level.
        strides: input pixels a cell for each map.
        finer_by: FPN levels between the coarse features and the coarsest quadtree level: 1 in the released code
            (28, 56, 112 read i - 1, i - 2, i - 3), 0 in the paper (i, i - 1, i - 2). Both are clamped at P2.
        branch: 3x3 convolutions of the first map that are added where nodes read it; None where they are in it.
    """

    coarse: Tensor
    semantic: Tensor | None
    maps: list[Tensor]
    rois: Tensor
    levels: Tensor
    strides: list[float]
    finer_by: int = 1
    branch: nn.Sequential | None = None

    def select(self, index: Tensor) -> RoIPyramid:
        """The same pyramid for some of the RoIs."""
        return replace(self, coarse=self.coarse[index], rois=self.rois[index], levels=self.levels[index])

    def project(self, weight: Tensor) -> RoIPyramid:
        """The pyramid of maps put through a 1x1 convolution without bias, weight (C', C, 1, 1)."""
        return replace(self, maps=[F.conv2d(m, weight.to(m.dtype)) for m in self.whole_maps()], branch=None)

    def whole_maps(self) -> list[Tensor]:
        """The maps, the first with its branch everywhere."""
        if self.branch is None:
            return self.maps
        return [self.maps[0] + self.branch(self.maps[0]), *self.maps[1:]]

    def map_of(self, depth: int) -> Tensor:
        """Index (R,) of the map that quadtree level ``depth`` is read from."""
        return (self.levels - self.finer_by - depth).clamp(min=0)

    def dense(self, depth: int, size: int) -> Tensor:
        """RoIAlign (aligned, adaptive sampling) of a whole quadtree level, (R, C, size, size)."""
        source, maps = self.map_of(depth), self.whole_maps()
        if in_bf16_on_cpu(maps[0]):
            return pool_grids(maps, self.strides, self.rois, source, size)
        out = maps[0].new_zeros((len(self.rois), maps[0].shape[1], size, size))
        for index, (feature, stride) in enumerate(zip(maps, self.strides, strict=True)):
            rows = torch.nonzero(source == index)[:, 0]
            pooled = roi_align(feature, self.rois[rows].to(feature.dtype), size, 1.0 / stride, 0, True)
            out = out.index_copy(0, rows, pooled)
        return out

    def at(self, levels: list[Nodes], sizes: list[int]) -> list[Tensor]:
        """Features at nodes, (Q, C) a quadtree level: what a dense RoIAlign of that size would hold there.

        Nodes may lie outside the grid (neighbours of its rim): the RoI goes on there.
        """
        reads, numbers = list[Reads](), list[int]()
        for depth, (nodes, size) in enumerate(zip(levels, sizes, strict=True)):
            level = plan_reads(self.maps, self.strides, self.rois, self.map_of(depth), nodes, size)
            reads, numbers = reads + level, numbers + [depth] * len(level)
        tables, reads = self.tables(reads)
        return [
            sum_reads(
                tables, [read for read, number in zip(reads, numbers, strict=True) if number == depth], len(nodes)
            )
            for depth, nodes in enumerate(levels)
        ]

    def tables(self, reads: list[Reads]) -> tuple[list[Tensor], list[Reads]]:
        """Rows of every map in which the reads find their cells, and the reads."""
        maps = self.maps
        cells = [read.cells.flatten() for read in reads if read.map_index == 0]
        if self.branch is not None and cells:
            maps = [add_branch(self.branch, maps[0], torch.cat(cells)), *maps[1:]]
        return [rows_of(m) for m in maps], reads


class RefinementPooler(nn.Module):
    """Pools the coarse RoI grid and prepares the maps the nodes are read from.

    The four convolutions on P2 carry the checkpoint name ``conv_norm_relus_semantic``; without ``p2_branch`` (the
    paper) the maps are the FPN's own.
    """

    def __init__(
        self,
        channels: int,
        output_size: int,
        scales: tuple[float, ...],
        sampling_ratio: int,
        *,
        p2_branch: bool = True,
        finer_by: int = 1,
    ) -> None:
        super().__init__()
        if sampling_ratio != 0:
            raise ValueError(f"POOLER_SAMPLING_RATIO must be 0 (adaptive) for the mask branch, got {sampling_ratio}")
        self.pooler = ROIPooler(output_size, scales, sampling_ratio, pooler_type="ROIAlignV2")
        self.strides = [1.0 / scale for scale in scales]
        self.finer_by = finer_by
        self.conv_norm_relus_semantic = _p2_branch(channels) if p2_branch else None

    def forward(self, features: list[Tensor], boxes: list[Boxes]) -> RoIPyramid:
        """Pool R boxes of N images from FPN maps (P2 first); boxes in input pixels."""
        branch = self.conv_norm_relus_semantic
        levels = _levels_of(self.pooler, boxes)
        rois = convert_boxes_to_pooler_format(boxes)
        if in_bf16_on_cpu(features[0]):
            coarse = pool_grids(features, self.strides, rois, levels, self.pooler.output_size[0])
            return RoIPyramid(coarse, None, features, rois, levels, self.strides, self.finer_by, branch)
        coarse = self.pooler(features, boxes)
        semantic = None if branch is None else branch(features[0])
        maps = features if semantic is None else [features[0] + semantic, *features[1:]]
        return RoIPyramid(coarse, semantic, maps, rois, levels, self.strides, self.finer_by)


class TablePooler(nn.Module):
    """Stands for detectron2's `ROIPooler` (aligned, adaptive sampling) on bf16 maps, which torchvision cannot pool."""

    def __init__(self, pooler: ROIPooler) -> None:
        super().__init__()
        if any(level.sampling_ratio for level in pooler.level_poolers):
            raise ValueError("POOLER_SAMPLING_RATIO must be 0 (adaptive) to pool bf16 maps")
        self.pooler = pooler
        self.strides = [1.0 / level.spatial_scale for level in pooler.level_poolers]

    def forward(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        """(R, C, S, S) of R boxes of N images."""
        rois, levels = convert_boxes_to_pooler_format(boxes), _levels_of(self.pooler, boxes)
        return pool_grids(features, self.strides, rois, levels, self.pooler.output_size[0])


def _levels_of(pooler: ROIPooler, boxes: list[Boxes]) -> Tensor:
    """Index (R,) of the map that each box is pooled from."""
    return assign_boxes_to_levels(
        boxes, pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
    )


def _p2_branch(channels: int) -> nn.Sequential:
    convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4)]
    for convolution in convolutions:
        nn.init.xavier_uniform_(convolution.weight)
    layers: list[nn.Module] = [convolutions[0]]
    for convolution in convolutions[1:]:
        layers += [nn.ReLU(), convolution]
    return nn.Sequential(*layers)


# More sampling points along an axis of a bin than any RoI has: a feature map has fewer cells.
_MOST_SAMPLES = 1 << 20


#: Side of the tiles, in cells, in which a branch is computed.
BRANCH_TILE = 16


def add_branch(branch: nn.Sequential, feature: Tensor, cells: Tensor) -> Tensor:
    """A map (N, C, H, W) plus its branch, in the tiles that hold ``cells``; elsewhere the map alone.

    Args:
        branch: 3x3 convolutions with a padding of one, and pointwise layers between. The tiles are computed with as
            many cells around them as there are convolutions, and those beyond the map are zero before each of them.
        cells: (K,) rows of `rows_of` the map.
    """
    count, _, height, width = feature.shape
    is_read = torch.zeros(count * height * width, device=feature.device)
    is_read[cells] = 1.0
    tile, reach = BRANCH_TILE, sum(isinstance(layer, nn.Conv2d) for layer in branch)
    below, right = -height % tile, -width % tile
    is_tile_read = F.max_pool2d(F.pad(is_read.view(count, 1, height, width), (0, right, 0, below)), tile)[:, 0]
    tiles = torch.nonzero(is_tile_read).tolist()
    if len(tiles) * (tile + reach) ** 2 >= count * height * width:
        return feature + branch(feature)
    padded_map = F.pad(feature, (reach, right + reach, reach, below + reach))
    window = tile + 2 * reach
    parts = [padded_map[n, :, y * tile : y * tile + window, x * tile : x * tile + window] for n, y, x in tiles]
    hidden = torch.stack(parts).contiguous(memory_format=torch.channels_last)
    inside = F.pad(feature.new_ones(height, width), (reach, right + reach, reach, below + reach))
    insides = torch.stack([inside[y * tile : y * tile + window, x * tile : x * tile + window] for _, y, x in tiles])
    at_border = torch.nonzero(insides.amin((1, 2)) == 0)[:, 0]
    for layer in branch:
        if isinstance(layer, nn.Conv2d):
            hidden = F.conv2d(hidden, layer.weight, layer.bias)
            insides = insides[:, 1:-1, 1:-1]
        else:
            hidden = layer(hidden)
        hidden[at_border] *= insides[at_border, None]
    result = feature.clone()
    for (n, y, x), part in zip(tiles, hidden, strict=True):
        place = result[n, :, y * tile : (y + 1) * tile, x * tile : (x + 1) * tile]
        place += part[:, : place.shape[1], : place.shape[2]]
    return result


def rows_of(feature: Tensor) -> Tensor:
    """The cells of a map (N, C, H, W) as rows (N * H * W, C); no copy of one that lies channels-last."""
    return feature.permute(0, 2, 3, 1).flatten(0, 2).contiguous()


def pool_grids(maps: list[Tensor], strides: list[float], rois: Tensor, levels: Tensor, size: int) -> Tensor:
    """RoIAlign (aligned, adaptive sampling) of whole size x size grids, (R, C, size, size), channels last."""
    place = torch.arange(size * size, device=rois.device).repeat(len(rois))
    roi = torch.arange(len(rois), device=rois.device).repeat_interleave(size * size)
    nodes = Nodes(roi, place // size, place % size)
    reads = plan_reads(maps, strides, rois, levels, nodes, size)
    pooled = sum_reads([rows_of(m) for m in maps], reads, len(nodes))
    return pooled.unflatten(0, (len(rois), size, size)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Reads:
    """What some of the nodes read of a map: ``nodes`` (M,), ``cells`` (M, K) rows of the map, ``weights`` (M, K)."""

    map_index: int
    nodes: Tensor
    cells: Tensor
    weights: Tensor


def plan_reads(
    maps: list[Tensor], strides: list[float], rois: Tensor, roi_levels: Tensor, nodes: Nodes, size: int
) -> list[Reads]:
    """RoIAlign (aligned, adaptive sampling) of a size x size grid at the nodes alone, as weighted sums of cells.

    Args:
        rois: (R, 5); roi_levels: (R,) the map each RoI is read from.
    """
    geometry = _roi_geometry(maps, strides, rois, roi_levels, size)
    # Nodes of one kind read the same map at equally many sampling points; coded as one number, which sorts quicker.
    samples_yx = geometry.samples_yx.clamp(max=_MOST_SAMPLES - 1)
    code = (roi_levels * _MOST_SAMPLES + samples_yx[:, 0]) * _MOST_SAMPLES + samples_yx[:, 1]
    kinds, kind = torch.unique(code, return_inverse=True)
    kind_of_node = kind[nodes.roi]
    reads = []
    for number, value in enumerate(kinds.tolist()):
        quotient, samples_x = divmod(value, _MOST_SAMPLES)
        map_index, samples_y = divmod(quotient, _MOST_SAMPLES)
        members = torch.nonzero(kind_of_node == number)[:, 0]
        if samples_y > 0 and samples_x > 0 and len(members):
            rois_of_kind = torch.nonzero(kind == number)[:, 0]
            rows = _axis_reads(geometry, rois_of_kind, size, samples_y, axis=0)
            columns = _axis_reads(geometry, rois_of_kind, size, samples_x, axis=1)
            # Number of each RoI among those of its kind, times its places.
            offset = torch.zeros_like(kind).index_copy(
                0, rois_of_kind, torch.arange(len(rois_of_kind), device=kind.device)
            )
            offset = offset[nodes.roi[members]] * (size + 2) + 1
            y, x = offset + nodes.y[members], offset + nodes.x[members]
            cells = rows.cells[y][:, :, None] + columns.cells[x][:, None, :]
            weights = rows.weights[y][:, :, None] * columns.weights[x][:, None, :]
            reads.append(Reads(map_index, members, cells.flatten(1), weights.flatten(1)))
    return reads


def sum_reads(tables: list[Tensor], reads: list[Reads], count: int) -> Tensor:
    """(Q, C) for ``count`` nodes, equal to ``roi_align(...)[roi, :, y, x]`` up to rounding; tables: see `rows_of`."""
    out = tables[0].new_zeros((count, tables[0].shape[1]))
    for read in reads:
        table = tables[read.map_index]
        values = F.embedding_bag(read.cells, table, mode="sum", per_sample_weights=read.weights.to(table.dtype))
        out = out.index_copy(0, read.nodes, values)
    return out


@dataclass(frozen=True)
class _Geometry:
    start_yx: Tensor  # (R, 2) in cells of the RoI's map
    bin_yx: Tensor  # (R, 2)
    samples_yx: Tensor  # (R, 2) int64, sampling points a bin and axis
    shape_yx: Tensor  # (R, 2) int64, height and width of the RoI's map
    offset: Tensor  # (R,) first row of the RoI's image in its map's table


def _roi_geometry(maps: list[Tensor], strides: list[float], rois: Tensor, levels: Tensor, size: int) -> _Geometry:
    device = rois.device
    shapes = torch.tensor([m.shape[-2:] for m in maps], device=device)
    cells = shapes.prod(1)
    scale = rois.new_tensor([1.0 / s for s in strides])[levels, None]
    start = rois[:, [2, 1]] * scale - 0.5
    extent = rois[:, [4, 3]] * scale - 0.5 - start
    return _Geometry(
        start,
        extent / size,
        torch.ceil(extent / size).long().clamp(min=0),
        shapes[levels],
        rois[:, 0].long() * cells[levels],
    )


@dataclass(frozen=True)
class _AxisReads:
    cells: Tensor  # (R' * (size + 2), 2 * samples) rows of the map's table, of one column of the map or relative to it
    weights: Tensor  # of the same shape


def _axis_reads(geometry: _Geometry, rois: Tensor, size: int, samples: int, axis: int) -> _AxisReads:
    """Along one axis: the two cells beside each sampling point of every place of a grid, and of one beyond its ends."""
    step = geometry.bin_yx[rois, axis][:, None, None]
    place = torch.arange(-1, size + 1, device=rois.device)[:, None]
    offsets = (torch.arange(samples, device=rois.device) + 0.5) / samples
    position = geometry.start_yx[rois, axis][:, None, None] + (place + offsets) * step
    last_cell = geometry.shape_yx[rois, axis][:, None, None] - 1
    is_inside = (position >= -1) & (position <= last_cell + 1)
    positions = torch.minimum(position.clamp(min=0), last_cell.to(position.dtype))
    low = positions.floor().long()
    fraction = positions - low
    share = is_inside.to(position.dtype) / samples
    cells = torch.cat([low, torch.minimum(low + 1, last_cell)], 2)
    if axis == 0:
        cells = geometry.offset[rois][:, None, None] + cells * geometry.shape_yx[rois, 1][:, None, None]
    return _AxisReads(cells.flatten(0, 1), torch.cat([(1 - fraction) * share, fraction * share], 2).flatten(0, 1))
