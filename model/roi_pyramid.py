"""RoI features for the mask branch: a dense coarse grid, and single places of finer grids on demand.

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

from model.quadtree import Nodes
from model.roi_sampling import flatten_maps, sample_roi_align


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
        levels = assign_boxes_to_levels(
            boxes,
            self.pooler.min_level,
            self.pooler.max_level,
            self.pooler.canonical_box_size,
            self.pooler.canonical_level,
        )
        finest = features[0] if semantic is None else features[0] + semantic
        maps = [finest, *features[1:]]
        rois = convert_boxes_to_pooler_format(boxes)
        coarse = self.pooler(features, boxes)
        return RoIPyramid(coarse, semantic, maps, rois, levels, self.strides, self.finer_by)


def _p2_branch(channels: int) -> nn.Sequential:
    convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4)]
    for convolution in convolutions:
        nn.init.xavier_uniform_(convolution.weight)
    layers: list[nn.Module] = [convolutions[0]]
    for convolution in convolutions[1:]:
        layers += [nn.ReLU(), convolution]
    return nn.Sequential(*layers)
