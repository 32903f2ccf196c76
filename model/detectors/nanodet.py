"""NanoDet-g: a small one-stage detector of COCO's 80 classes (RangiLyu/nanodet, Apache-2.0), rewritten in torch.

The norms of the original are folded into its convolutions, so a layer is a convolution with bias and LeakyReLU(0.1).
Its trunk (strides 4 to 32) is also the backbone of the promptable network (`model.prompts.network`).

Shape shorthand: N images, C channels, L the three strides, B boxes, K = 80 classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou

from model.detectors.coco_classes import COCO_CLASSES

INPUT_SIZE = 416
PIXEL_MEAN_BGR = (103.53, 116.28, 123.675)
PIXEL_STD_BGR = (57.375, 57.12, 58.395)
STRIDES = (8, 16, 32)
DISTANCE_BINS = 11
NMS_IOU = 0.6
#: Boxes of several looks at an image vote for one place from this overlap on.
VOTE_IOU = 0.7
TRUNK_CHANNELS = (64, 128, 256, 512)  # at strides 4, 8, 16, 32
STEM_CHANNELS = 32
PYRAMID_CHANNELS = 128


class Layer(nn.Module):
    """3x3 convolution with bias and LeakyReLU(0.1)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x), 0.1, inplace=True)


class SplitBlock(nn.Module):
    """Two layers in a row whose outputs stand side by side, the later one first."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.first = Layer(channels_in, channels)
        self.second = Layer(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        first_half = self.first(x)
        return torch.cat([self.second(first_half), first_half], 1)


class Stage(nn.Module):
    """A cross-stage-partial stage: a layer, ``blocks``, a layer, and the first layer's output beside the last's."""

    def __init__(self, channels_in: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.enter = Layer(channels_in, channels, stride)
        self.blocks = nn.ModuleList(SplitBlock(channels, channels // 2) for _ in range(blocks))
        self.leave = Layer(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        first_output = output = self.enter(x)
        for block in self.blocks:
            output = block(output)
        return torch.cat([self.leave(output), first_output], 1)


class Trunk(nn.Module):
    """The backbone: a stem at stride 2 and four stages at strides 4 to 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Layer(3, STEM_CHANNELS, 2)
        self.stages = nn.ModuleList(
            [Stage(32, 32, 1, 1), Stage(64, 64, 2, 2), Stage(128, 128, 2, 2), Stage(256, 256, 3, 2)]
        )

    def forward(
        self, images: Tensor, prompts: Tensor | None = None, prompt_stem: nn.Conv2d | None = None
    ) -> list[Tensor]:
        """Features at strides 2, 4, 8, 16, 32 of (N, 3, H, W) normalised BGR images.

        Args:
            prompts: (N, P, H, W) maps. prompt_stem: their convolution, like the stem's; its output is added to the
                stem's before the activation.
        """
        stem = self.stem.conv
        if prompts is None or prompt_stem is None:
            x = stem(images)
        else:  # the sum of both convolutions as one: few channels each, so two take longer
            weight = torch.cat([stem.weight, prompt_stem.weight], 1)
            assert stem.bias is not None
            assert prompt_stem.bias is not None
            bias = stem.bias + prompt_stem.bias
            x = F.conv2d(torch.cat([images, prompts], 1), weight, bias, stem.stride, stem.padding)
        features = [F.leaky_relu(x, 0.1)]
        x = F.max_pool2d(features[0], 3, 2, 1)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class PathAggregation(nn.Module):
    """Top-down and bottom-up sums of the last three stages, without convolutions between."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, PYRAMID_CHANNELS, 1) for channels in TRUNK_CHANNELS[1:])

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """Three maps of 128 channels from the features at strides 8, 16, 32."""
        maps = [layer(x) for layer, x in zip(self.lateral, stages, strict=True)]
        for finer in (1, 0):
            maps[finer] = maps[finer] + _resize_like(maps[finer + 1], maps[finer])
        for coarser in (1, 2):
            maps[coarser] = maps[coarser] + _resize_like(maps[coarser - 1], maps[coarser])
        return maps


def _resize_like(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear")


class Detections(NamedTuple):
    """Boxes of one image by falling score: (B, 4) xyxy in pixels, (B,), int64 (B,)."""

    boxes_xyxy: Tensor
    scores: Tensor
    classes: Tensor


class NanoDet(nn.Module):
    """The whole detector."""

    def __init__(self, num_classes: int = len(COCO_CLASSES)) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.trunk = Trunk()
        self.pyramid = PathAggregation()
        self.towers = nn.ModuleList(Layer(PYRAMID_CHANNELS, PYRAMID_CHANNELS) for _ in STRIDES)
        outputs = num_classes + 4 * DISTANCE_BINS
        self.outputs = nn.ModuleList(nn.Conv2d(PYRAMID_CHANNELS, outputs, 1) for _ in STRIDES)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, K + 44, h, w) a stride: class logits, then logits of 11 distances for left, top, right, bottom."""
        return [output(tower) for output, tower in zip(self.outputs, self.tower_features(images), strict=True)]

    def tower_features(self, images: Tensor) -> list[Tensor]:
        """(N, 128, h, w) a stride: what the last, linear layer reads."""
        maps = self.pyramid(self.trunk(images)[2:])
        return [tower(x) for tower, x in zip(self.towers, maps, strict=True)]

    def look(self, pixels: Tensor, side: int, *, is_mirrored: bool) -> tuple[Tensor, Tensor]:
        """Candidates in one image (1, 3, h, w), RGB in 0..255, stretched to a square: boxes as shares of it, scores."""
        view = F.interpolate(pixels.flip(-1) if is_mirrored else pixels, (side, side), mode="bilinear", antialias=True)
        boxes, scores = self.candidates(self(normalised(view)))
        return as_shares(boxes, side, is_mirrored=is_mirrored), scores

    def candidates(self, outputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes (cells, 4) in pixels of the square input and scores (cells, K) of one image."""
        boxes, scores = [], []
        for stride, output in zip(STRIDES, outputs, strict=True):
            rows, columns = output.shape[-2:]
            flat = output[0].flatten(1).T.float()
            scores.append(flat[:, : self.num_classes].sigmoid())
            bins = torch.arange(DISTANCE_BINS, dtype=flat.dtype, device=flat.device)
            spread = flat[:, self.num_classes :].unflatten(1, (4, DISTANCE_BINS)).softmax(2)
            left, top, right, bottom = (spread @ bins * stride).unbind(1)
            y = ((torch.arange(rows, device=flat.device) + 0.5) * stride).repeat_interleave(columns)
            x = ((torch.arange(columns, device=flat.device) + 0.5) * stride).repeat(rows)
            boxes.append(torch.stack([x - left, y - top, x + right, y + bottom], 1))
        return torch.cat(boxes), torch.cat(scores)


def as_shares(boxes: Tensor, side: int, *, is_mirrored: bool) -> Tensor:
    """Boxes (B, 4) in pixels of a square that an image was stretched to, as shares of the image."""
    left, top, right, bottom = (boxes / side).unbind(1)
    return torch.stack([1 - right, top, 1 - left, bottom] if is_mirrored else [left, top, right, bottom], 1)


def detections_of(
    looks: list[tuple[Tensor, Tensor]], size_hw: tuple[int, int], score_threshold: float, max_detections: int
) -> Detections:
    """The detections of one or several looks at an image (see `NanoDet.look`); boxes in its pixels."""
    if len(looks) == 1:
        return _strongest(*looks[0], size_hw, score_threshold, max_detections)
    return _vote(looks, size_hw, score_threshold, max_detections)


def _strongest(
    boxes: Tensor, scores: Tensor, size_hw: tuple[int, int], score_threshold: float, max_detections: int
) -> Detections:
    """Candidates of one look without the doubles."""
    boxes = _in_image(boxes, size_hw)
    cell, label = torch.nonzero(scores >= score_threshold, as_tuple=True)
    indices = batched_nms(boxes[cell], scores[cell, label], label, NMS_IOU)[:max_detections]
    return Detections(boxes[cell[indices]], scores[cell, label][indices], label[indices])


def _vote(
    looks: list[tuple[Tensor, Tensor]], size_hw: tuple[int, int], score_threshold: float, max_detections: int
) -> Detections:
    """Candidates of several looks without the doubles.

    A box is the mean of those like it, weighted by their scores (box voting: Gidaris & Komodakis, ICCV 2015). Its score
    lies between the highest and the mean over all looks, so that a thing seen in one look alone counts less.
    """
    boxes = torch.cat([_in_image(boxes, size_hw) for boxes, _ in looks])
    scores = torch.cat([scores for _, scores in looks])
    number = torch.arange(len(looks)).repeat_interleave(torch.tensor([len(scores) for _, scores in looks]))
    cell, label = torch.nonzero(scores >= score_threshold, as_tuple=True)
    boxes, scores, number = boxes[cell], scores[cell, label], number.to(cell.device)[cell]
    indices = batched_nms(boxes, scores, label, NMS_IOU)[:max_detections]
    overlaps = box_iou(boxes[indices], boxes) * (label[indices][:, None] == label)
    overlaps[torch.arange(len(indices)), indices] = 1.0  # not a number where cutting to the image left no area
    votes = scores * (overlaps >= VOTE_IOU)
    voted_boxes = votes @ boxes / votes.sum(1, keepdim=True)
    votes_nms = F.pad(scores * (overlaps >= NMS_IOU), (0, 1))  # one more: no candidates, no maximum
    look_scores = [(votes_nms * F.pad(number == look, (0, 1))).amax(1) for look in range(len(looks))]
    final_scores = (scores[indices] + torch.stack(look_scores).mean(0)) / 2
    order = final_scores.argsort(descending=True)
    order = order[final_scores[order] >= score_threshold]
    return Detections(voted_boxes[order], final_scores[order], label[indices[order]])


def _in_image(boxes: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Boxes as shares of an image in its pixels, cut to it."""
    height, width = size_hw
    boxes = boxes * boxes.new_tensor([width, height, width, height])
    return torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], 2).flatten(1)


def normalised(images_rgb: Tensor) -> Tensor:
    """(N, 3, H, W) RGB in 0..255 to the network's BGR input."""
    mean = images_rgb.new_tensor(PIXEL_MEAN_BGR)[:, None, None]
    std = images_rgb.new_tensor(PIXEL_STD_BGR)[:, None, None]
    return (images_rgb.flip(1) - mean) / std


def convolutions_in_graph_order(network: NanoDet) -> list[nn.Conv2d]:
    """The 34 convolutions as the packaged graph numbers them: trunk, laterals, then tower and output a stride."""
    trunk = [module for module in network.trunk.modules() if isinstance(module, nn.Conv2d)]
    heads: list[nn.Conv2d] = []
    for tower, output in zip(network.towers, network.outputs, strict=True):
        heads += [tower.conv, output]  # type: ignore[list-item]
    return [*trunk, *network.pyramid.lateral, *heads]
