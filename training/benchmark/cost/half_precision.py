"""PointRend in bf16, converted as our network is, and a PointRend that computes only the detected class.

The conversion is `model.inference.precision.to_bf16`: folded norms, bf16 weights, maps channels-last; points are read
from a table of cells, and the point head is a chain of matrix products. Needs detectron2's PointRend project.

Shape shorthand: R RoIs, P points an RoI, K classes, C channels, S a side of the coarse mask.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.projects.point_rend.mask_head import PointRendMaskHead
from detectron2.projects.point_rend.point_features import (
    generate_regular_grid_point_coords,
    get_uncertain_point_coords_on_grid,
)
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from model.inference.precision import to_bf16


def point_rend_to_bf16(network: nn.Module, *, own_class: bool) -> None:
    """Make a PointRend compute in bf16, in place; ``own_class``: each RoI's detected class alone."""
    to_bf16(network)
    heads: Any = network.roi_heads
    heads.mask_head.__class__ = OwnClassPointRendHead if own_class else TablePointRendHead


def sample_points(table: Tensor, shape_yx: tuple[int, int], first_row: Tensor, points_xy: Tensor) -> Tensor:
    """Bilinear values (Q, C) at points (Q, 2) in cells, 0 outside, as `grid_sample` with `align_corners=False`.

    Args:
        table: cells of maps as rows, row by row. shape_yx: of a map. first_row: (Q,) first row of each point's map.
    """
    height, width = shape_yx
    position = points_xy - 0.5
    low = position.floor()
    fraction = position - low
    index, weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = low[:, 0].long() + dx, low[:, 1].long() + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            weight = (fraction[:, 0] if dx else 1 - fraction[:, 0]) * (fraction[:, 1] if dy else 1 - fraction[:, 1])
            index.append(first_row + y.clamp(0, height - 1) * width + x.clamp(0, width - 1))
            weights.append(weight * inside)
    reads, shares = torch.stack(index, 1), torch.stack(weights, 1).to(table.dtype)
    return F.embedding_bag(reads, table, mode="sum", per_sample_weights=shares)


class TablePointRendHead(PointRendMaskHead):
    """PointRend's inference with points read from tables."""

    def _roi_pooler(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """Pool features of one image's boxes, (R, C, S, S)."""
        side, rois = self.roi_pooler_size, len(boxes[0])
        grid = generate_regular_grid_point_coords(rois, side, boxes[0].device)
        return self._point_pooler(features, boxes, grid).unflatten(2, (side, side))

    def _point_pooler(self, features: dict[str, Tensor], boxes: list[Boxes], coords: Tensor) -> Tensor:
        """Sample one image's P2 features at ``coords`` (R, P, 2), fractions of the boxes: (R, C, P)."""
        (name,), (box_xyxy,) = self.mask_point_in_features, [part.tensor for part in boxes]
        feature = features[name]
        table = feature[0].permute(1, 2, 0).flatten(0, 1)
        corner, extent = box_xyxy[:, None, :2], (box_xyxy[:, 2:] - box_xyxy[:, :2])[:, None]
        cells = ((corner + coords * extent) * self._feature_scales[name]).flatten(0, 1)
        first_row = torch.zeros(len(cells), dtype=torch.int64)
        rows = sample_points(table, (feature.shape[2], feature.shape[3]), first_row, cells)
        return rows.unflatten(0, coords.shape[:2]).transpose(1, 2)

    def _get_point_logits(self, fine: Tensor, coords: Tensor, coarse: Tensor) -> Tensor:
        """Point logits (R, K, P) from features (R, C, P) and coarse logits (R, K, S, S)."""
        rows = self._hidden(fine, coords, coarse)
        predictor = self.point_head.predictor
        return F.linear(rows, predictor.weight[:, :, 0], predictor.bias).transpose(1, 2)

    def _hidden(self, fine: Tensor, coords: Tensor, coarse: Tensor) -> Tensor:
        """Input of the point head's last layer, (R, P, C')."""
        rois, classes, side, _ = coarse.shape
        table = coarse.permute(0, 2, 3, 1).reshape(-1, classes)
        first_row = torch.arange(rois).repeat_interleave(coords.shape[1]) * side * side
        coarse_rows = sample_points(table, (side, side), first_row, (coords * side).flatten(0, 1))
        guides = coarse_rows.unflatten(0, coords.shape[:2])
        rows = torch.cat([fine.transpose(1, 2), guides], 2)
        for layer in self.point_head.fc_layers:
            rows = F.linear(rows, layer.weight[:, :, 0], layer.bias).relu_()
            if self.point_head.coarse_pred_each_layer:
                rows = torch.cat([rows, guides], 2)
        return rows


class OwnClassPointRendHead(TablePointRendHead):
    """Subdivides the mask of the detected class only; upstream carries all K classes along and picks one at the end."""

    def _subdivision_inference(
        self, features: dict[str, Tensor], coarse: Tensor, instances: list[Instances]
    ) -> list[Instances]:
        boxes = [image.pred_boxes for image in instances]
        classes = torch.cat([image.pred_classes for image in instances])
        predictor = self.point_head.predictor
        weight, bias = predictor.weight[classes, :, 0], predictor.bias[classes]

        def logits_at(coords: Tensor) -> Tensor:
            hidden = self._hidden(self._point_pooler(features, boxes, coords), coords, coarse)
            return (hidden @ weight[:, :, None])[:, :, 0].float() + bias[:, None].float()

        side = self.mask_point_subdivision_init_resolution
        grid = generate_regular_grid_point_coords(len(classes), side, boxes[0].device)
        masks = logits_at(grid).unflatten(1, (1, side, side))
        for _ in range(self.mask_point_subdivision_steps):
            masks = F.interpolate(masks, scale_factor=2, mode="bilinear", align_corners=False)
            index, coords = get_uncertain_point_coords_on_grid(-masks.abs(), self.mask_point_subdivision_num_points)
            masks = masks.flatten(1).scatter(1, index, logits_at(coords)).view_as(masks)
        for image, mask in zip(instances, masks.sigmoid().split([len(image) for image in instances]), strict=True):
            image.pred_masks = mask
        return instances
