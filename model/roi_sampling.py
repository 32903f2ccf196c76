"""RoIAlign at single places of a grid: what a dense one would hold there, without pooling the rest.

Shape shorthand: R RoIs, C channels, Q nodes, N images, H x W of a feature map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.quadtree import Nodes

# More sampling points along an axis of a bin than any RoI has: a feature map has fewer cells.
_MOST_SAMPLES = 1 << 20


def flatten_maps(maps: list[Tensor]) -> Tensor:
    """All cells of all maps as rows of one (sum of N*H*W, C) table."""
    return torch.cat([m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps])


def sample_roi_align(
    table: Tensor,
    maps: list[Tensor],
    strides: list[float],
    rois: Tensor,
    roi_levels: Tensor,
    nodes: Nodes,
    size: int,
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
