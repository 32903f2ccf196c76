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
        maps: FPN maps P2.., the first with the branch added where there is one.
        rois: (R, 5) image index and box in pixels of the network's input.
        levels: (R,) index into ``maps`` of the coarse features' level.
        strides: input pixels a cell for each map.
        finer_by: FPN levels between the coarse features and the coarsest quadtree level: 1 in the released code
            (28, 56, 112 read i - 1, i - 2, i - 3), 0 in the paper (i, i - 1, i - 2). Both are clamped at P2.
    """

    coarse: Tensor
    semantic: Tensor | None
    maps: list[Tensor]
    rois: Tensor
    levels: Tensor
    strides: list[float]
    finer_by: int = 1

    def select(self, index: Tensor) -> RoIPyramid:
        """The same pyramid for some of the RoIs."""
        return replace(self, coarse=self.coarse[index], rois=self.rois[index], levels=self.levels[index])

    def project(self, weight: Tensor) -> RoIPyramid:
        """The pyramid of maps put through a 1x1 convolution without bias, weight (C', C, 1, 1)."""
        return replace(self, maps=[F.conv2d(m, weight.to(m.dtype)) for m in self.maps])

    def map_of(self, depth: int) -> Tensor:
        """Index (R,) of the map that quadtree level ``depth`` is read from."""
        return (self.levels - self.finer_by - depth).clamp(min=0)

    def dense(self, depth: int, size: int) -> Tensor:
        """RoIAlign (aligned, adaptive sampling) of a whole quadtree level, (R, C, size, size)."""
        source = self.map_of(depth)
        if in_bf16_on_cpu(self.maps[0]):
            return pool_grids(self.maps, self.strides, self.rois, source, size)
        out = self.maps[0].new_zeros((len(self.rois), self.maps[0].shape[1], size, size))
        for index, (feature, stride) in enumerate(zip(self.maps, self.strides, strict=True)):
            rows = torch.nonzero(source == index)[:, 0]
            pooled = roi_align(feature, self.rois[rows].to(feature.dtype), size, 1.0 / stride, 0, True)
            out = out.index_copy(0, rows, pooled)
        return out

    def at(self, levels: list[Nodes], sizes: list[int]) -> list[Tensor]:
        """Features at nodes, (Q, C) a quadtree level: what a dense RoIAlign of that size would hold there.

        Nodes may lie outside the grid (neighbours of its rim): the RoI goes on there.
        """
        table = flatten_maps(self.maps)
        return [
            sample_roi_align(table, self.maps, self.strides, self.rois, self.map_of(depth), nodes, size)
            for depth, (nodes, size) in enumerate(zip(levels, sizes, strict=True))
        ]


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
        semantic = None if self.conv_norm_relus_semantic is None else self.conv_norm_relus_semantic(features[0])
        levels = _levels_of(self.pooler, boxes)
        finest = features[0] if semantic is None else features[0] + semantic
        maps = [finest, *features[1:]]
        rois = convert_boxes_to_pooler_format(boxes)
        if in_bf16_on_cpu(features[0]):
            coarse = pool_grids(features, self.strides, rois, levels, self.pooler.output_size[0])
        else:
            coarse = self.pooler(features, boxes)
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


def flatten_maps(maps: list[Tensor]) -> Tensor:
    """All cells of all maps as rows of one (sum of N*H*W, C) table."""
    return torch.cat([m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps])


def pool_grids(maps: list[Tensor], strides: list[float], rois: Tensor, levels: Tensor, size: int) -> Tensor:
    """RoIAlign (aligned, adaptive sampling) of whole size x size grids, (R, C, size, size), channels last."""
    place = torch.arange(size * size, device=rois.device).repeat(len(rois))
    roi = torch.arange(len(rois), device=rois.device).repeat_interleave(size * size)
    nodes = Nodes(roi, place // size, place % size)
    pooled = sample_roi_align(flatten_maps(maps), maps, strides, rois, levels, nodes, size)
    return pooled.unflatten(0, (len(rois), size, size)).permute(0, 3, 1, 2)


def sample_roi_align(
    table: Tensor, maps: list[Tensor], strides: list[float], rois: Tensor, roi_levels: Tensor, nodes: Nodes, size: int
) -> Tensor:
    """RoIAlign (aligned, adaptive sampling) of a size x size grid, computed only at the nodes.

    Args:
        table: rows of all maps' cells, see :func:`flatten_maps`.
        rois: (R, 5); roi_levels: (R,) the map each RoI is read from.

    Returns:
        (Q, C), equal to ``roi_align(...)[roi, :, y, x]`` up to rounding.
    """
    geometry = _roi_geometry(maps, strides, rois, roi_levels, size)
    # RoIs of one kind have bins with equally many sampling points; told by one number, which is quicker to sort.
    samples_yx = geometry.samples_yx
    kinds, kind = torch.unique(samples_yx[:, 0] * _MOST_SAMPLES + samples_yx[:, 1], return_inverse=True)
    kind_of_node = kind[nodes.roi]
    out = table.new_zeros((len(nodes), table.shape[1]))
    for number, code in enumerate(kinds.tolist()):
        samples_y, samples_x = divmod(code, _MOST_SAMPLES)
        members = torch.nonzero(kind_of_node == number)[:, 0]
        if samples_y > 0 and samples_x > 0 and len(members):
            index, weight = _bilinear_reads(geometry, nodes.select(members), samples_y, samples_x)
            values = F.embedding_bag(index, table, mode="sum", per_sample_weights=weight.to(table.dtype))
            out = out.index_copy(0, members, values)
    return out


@dataclass(frozen=True)
class _Geometry:
    start_yx: Tensor  # (R, 2) in cells of the RoI's map
    bin_yx: Tensor  # (R, 2)
    samples_yx: Tensor  # (R, 2) int64, sampling points a bin and axis
    shape_yx: Tensor  # (R, 2) int64, height and width of the RoI's map
    offset: Tensor  # (R,) first row of the RoI's image and map in the table


def _roi_geometry(maps: list[Tensor], strides: list[float], rois: Tensor, levels: Tensor, size: int) -> _Geometry:
    device = rois.device
    shapes = torch.tensor([m.shape[-2:] for m in maps], device=device)
    cells = shapes.prod(1)
    first_row = torch.cat([cells.new_zeros(1), (cells * maps[0].shape[0]).cumsum(0)[:-1]])
    scale = rois.new_tensor([1.0 / s for s in strides])[levels, None]
    start = rois[:, [2, 1]] * scale - 0.5
    extent = rois[:, [4, 3]] * scale - 0.5 - start
    return _Geometry(
        start,
        extent / size,
        torch.ceil(extent / size).long().clamp(min=0),
        shapes[levels],
        first_row[levels] + rois[:, 0].long() * cells[levels],
    )


def _bilinear_reads(geometry: _Geometry, nodes: Nodes, samples_y: int, samples_x: int) -> tuple[Tensor, Tensor]:
    """Rows to read and their weights, (Q, 4 * samples_y * samples_x) both."""
    rows, row_weights = _axis_reads(geometry, nodes.roi, nodes.y, samples_y, axis=0)
    columns, column_weights = _axis_reads(geometry, nodes.roi, nodes.x, samples_x, axis=1)
    width = geometry.shape_yx[nodes.roi, 1][:, None, None]
    index = geometry.offset[nodes.roi][:, None, None] + rows[:, :, None] * width + columns[:, None, :]
    weight = row_weights[:, :, None] * column_weights[:, None, :]
    return index.flatten(1), weight.flatten(1)


def _axis_reads(geometry: _Geometry, roi: Tensor, place: Tensor, samples: int, axis: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the two cells beside each sampling point and their weights, (Q, 2 * samples)."""
    step = geometry.bin_yx[roi, axis][:, None]
    offsets = (torch.arange(samples, device=roi.device) + 0.5) / samples
    position = geometry.start_yx[roi, axis][:, None] + (place[:, None] + offsets) * step
    last = geometry.shape_yx[roi, axis][:, None] - 1
    inside = (position >= -1) & (position <= last + 1)
    clamped = torch.minimum(position.clamp(min=0), last.to(position.dtype))
    low = clamped.floor().long()
    high = torch.minimum(low + 1, last)
    fraction = clamped - low
    share = inside.to(position.dtype) / samples
    return torch.cat([low, high], 1), torch.cat([(1 - fraction) * share, fraction * share], 1)
