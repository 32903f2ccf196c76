"""Incoherent regions: where a mask loses information when it is halved, and how they are detected.

`ReleasedDetection` is the reading of the released code and its checkpoints: one 28x28 map, finer levels by upsampling.
`CascadedDetection` is the paper's (equation 1; section 3.2; section 6.1 for the jitter).

Shape shorthand: R RoIs, C channels, S0 = 28 the coarse side, L levels coarse to fine, S the side of a level, M masks,
H x W of an image.
"""

from __future__ import annotations

from typing import Protocol

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from model.mask_head import losses
from model.mask_head.quadtree import double, nest
from model.mask_head.roi_features import RoIPyramid
from model.mask_head.targets import PixelWeights, crop_masks, image_masks

__all__ = ["CascadedDetection", "Detection", "ReleasedDetection", "build_detection"]

DETECTIONS = ("released", "cascaded")


class Detection(Protocol):
    """Finds incoherent places; the mask head registers ``layers`` by their names."""

    layers: dict[str, nn.Module]

    def __call__(self, pyramid: RoIPyramid, trunk: Tensor, coarse: Tensor, sizes: list[int]) -> list[Tensor]:
        """Logits of every level, (R, S, S) each, coarsest first."""
        ...

    def targets(self, instances: Instances, sizes: list[int]) -> list[Tensor]:
        """Bool regions (M, S, S) of one image's proposals, for as many levels as ``loss`` reads."""
        ...

    def loss(self, logits: list[Tensor], targets: list[Tensor], weights: PixelWeights | None = None) -> Tensor:
        """A scalar; targets are floats in {0, 1} of the logits' shapes, weights know these sides."""
        ...


def build_detection(node: CfgNode, channels: int, conv_dim: int, num_conv: int) -> Detection | None:
    """The detector that ``MODEL.TRANSFINER.DETECTION`` names; None where nothing asks for one.

    Raises:
        ValueError: an unknown name.
    """
    if node.REGION != "incoherent" or not node.LEVEL_SIZES:
        return None
    if node.DETECTION == "released":
        return ReleasedDetection(channels, conv_dim, node.INCOHERENCE_DIM, num_conv, node.INCOHERENCE_TARGET)
    if node.DETECTION == "cascaded":
        return CascadedDetection(channels, conv_dim, len(node.LEVEL_SIZES), num_conv, node.JITTER, node.GUIDANCE)
    raise ValueError(f"MODEL.TRANSFINER.DETECTION must be one of {DETECTIONS}, got {node.DETECTION!r}")


# Thresholds of the released code's target: on the residue of the half-size mask, then on its RoIAlign average.
RESIDUE_THRESHOLD = 0.01
ROI_THRESHOLD = 0.05
RESIDUES = ("absolute", "signed")


class ReleasedDetection:
    """Four 3x3 convolutions on the coarse RoI features, a 2x upsampling and a classifier.

    Not a module itself: the mask head registers ``layers`` under their checkpoint names, next to its own.

    Args:
        channels: of the RoI features; conv_dim: of the convolutions, the last of which has ``last_dim``.
        residue: see :func:`incoherence_map`.
    """

    def __init__(
        self, channels: int, conv_dim: int, last_dim: int, num_conv: int = 4, residue: str = "absolute"
    ) -> None:
        if residue not in RESIDUES:
            raise ValueError(f"MODEL.TRANSFINER.INCOHERENCE_TARGET must be one of {RESIDUES}, got {residue!r}")
        self.residue = residue
        self.layers: dict[str, nn.Module] = {}
        for k in range(1, num_conv + 1):
            out_channels = last_dim if k == num_conv else conv_dim
            self.layers[f"mask_fcn_uncertain{k}"] = nn.Conv2d(channels, out_channels, 3, padding=1)
            channels = out_channels
        self.layers["deconv_uncertain"] = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        for layer in self.layers.values():
            weight_init.c2_msra_fill(layer)
        self.layers["predictor_uncertain"] = classifier(channels)

    def __call__(self, pyramid: RoIPyramid, trunk: Tensor, coarse: Tensor, sizes: list[int]) -> list[Tensor]:
        """Incoherence logits of every level, (R, S, S) each; the finer ones are nearest upsamplings of the first.

        Args:
            trunk: (R, C, 14, 14) the coarse head's last features; gradients flow into it, but not into the RoI
                features of ``pyramid``. coarse: not looked at.
        """
        *convolutions, deconv, predictor = self.layers.values()
        hidden = pyramid.coarse.detach() + trunk
        for convolution in convolutions:
            hidden = F.relu(convolution(hidden))
        logits = predictor(deconv(hidden))
        return [F.interpolate(logits, (size, size))[:, 0] for size in sizes]

    def targets(self, instances: Instances, sizes: list[int]) -> list[Tensor]:
        """Regions of the coarsest level alone, bool (M, S0, S0)."""
        boxes = instances.proposal_boxes.tensor
        return [incoherence_target(image_masks(instances), boxes, sizes[0], self.residue)]

    def loss(self, logits: list[Tensor], targets: list[Tensor], weights: PixelWeights | None = None) -> Tensor:
        """Dice and cross entropy of the coarsest level; the others are copies of it."""
        return losses.incoherence_loss(logits[0], targets[0], weights)


def classifier(channels: int) -> nn.Conv2d:
    """A 1x1 convolution to one logit that starts undecided."""
    layer = nn.Conv2d(channels, 1, 1)
    nn.init.normal_(layer.weight, std=0.001)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def incoherence_map(masks: Tensor, residue: str = "absolute") -> Tensor:
    """Incoherence of full-image masks at half size, as the released code computes its targets.

    Args:
        masks: (M, H, W) bool or float.
        residue: ``"absolute"`` or ``"signed"`` (the code before 2022-08, which trained the COCO checkpoints).

    Returns:
        (M, H // 2, W // 2) float: 1 where halving and doubling the mask changes it by at least 0.01, else the
        small residue itself.
    """
    full = masks.float()[:, None]
    height, width = full.shape[-2:]
    half_size = (max(height // 2, 1), max(width // 2, 1))
    half = F.interpolate(full, half_size, mode="bilinear")
    difference = full - F.interpolate(half, (height, width), mode="bilinear")
    if residue == "absolute":
        difference = difference.abs()
    result = F.interpolate(difference, half_size, mode="bilinear")
    return torch.where(result >= RESIDUE_THRESHOLD, torch.ones_like(result), result)[:, 0]


def incoherence_target(masks: Tensor, boxes: Tensor, size: int, residue: str = "absolute") -> Tensor:
    """Incoherent places on the RoI grid, bool (M, size, size).

    Args:
        masks: (M, H, W) full-image masks; boxes: (M, 4) xyxy in image pixels, one a mask.
    """
    maps = incoherence_map(masks, residue)[:, None]
    index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None]
    rois = torch.cat([index, boxes / 2.0], dim=1).to(maps.dtype)
    return roi_align(maps, rois, (size, size), 1.0, 0, aligned=True)[:, 0] >= ROI_THRESHOLD


def incoherent_regions(masks: Tensor, levels: int, nested: bool = True) -> list[Tensor]:
    """Equation 1 on the pyramid of a mask.

    A place is incoherent where halving the finer mask by nearest neighbour and doubling it again changes one of
    its four pixels, that is, where they are not all equal.

    Args:
        masks: bool (R, S, S) at twice the finest level's side, S divisible by 2**levels.
        nested: keep a place only where its parent is incoherent too (equation 1 alone does not give that:
            a checkerboard is incoherent at the finest level and nowhere else).

    Returns:
        L bool tensors, coarsest first: (R, S / 2**L, ...) to (R, S / 2, ...).

    Raises:
        ValueError: the side cannot be halved ``levels`` times.
    """
    if masks.shape[-1] % 2**levels:
        raise ValueError(f"a mask of side {masks.shape[-1]} cannot be halved {levels} times")
    finer, regions = masks.float(), []
    for _ in range(levels):
        block_max, block_min = F.max_pool2d(finer, 2), -F.max_pool2d(-finer, 2)
        regions.append(block_max != block_min)
        finer = finer[:, ::2, ::2]
    regions.reverse()
    return nest(regions) if nested else regions


def jitter(regions: list[Tensor], probability: float) -> list[Tensor]:
    """Grow the regions of some RoIs by one place, so that the detector learns to miss little (section 6.1).

    The paper says only that boundaries are jittered because recall matters most; growing is our reading.

    Args:
        regions: L bool (R, S, S), coarsest first; probability: of growing, drawn once an RoI.
    """
    is_grown = torch.rand(len(regions[0]), device=regions[0].device) < probability
    grown_regions = [F.max_pool2d(region[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0 for region in regions]
    return [
        torch.where(is_grown[:, None, None], grown_region, region)
        for grown_region, region in zip(grown_regions, regions, strict=True)
    ]


class CascadedDetection:
    """Four 3x3 convolutions on the coarsest level; each finer one is guided by the upsampled level before it.

    A finer level is one 1x1 convolution on its RoI feature and the guidance. That convolution commutes with
    RoIAlign, so the feature maps are projected to one channel before they are pooled: the finest level costs as
    little as the coarsest.

    Not a module itself: the mask head registers ``layers``.

    Args:
        levels: L, at least one; jitter: probability of growing an instance's target regions.
        guidance: a finer level sees the level before it; without (Table 3) only its own RoI feature.
    """

    def __init__(
        self, channels: int, conv_dim: int, levels: int, num_conv: int = 4, jitter: float = 0.0, guidance: bool = True
    ) -> None:
        self.jitter = jitter
        self.layers: dict[str, nn.Module] = {}
        width = channels + 1
        for k in range(1, num_conv + 1):
            self.layers[f"incoherence_fcn{k}"] = convolution = nn.Conv2d(width, conv_dim, 3, padding=1)
            weight_init.c2_msra_fill(convolution)
            width = conv_dim
        self.layers["incoherence_root"] = classifier(conv_dim)
        for level in range(1, levels):
            self.layers[f"incoherence_level{level}"] = classifier(channels + int(guidance))
        self.num_conv = num_conv

    def __call__(self, pyramid: RoIPyramid, trunk: Tensor, coarse: Tensor, sizes: list[int]) -> list[Tensor]:
        """Incoherence logits of every level, (R, S, S) each.

        Args:
            coarse: (R, S0, S0) coarse mask probabilities of each RoI's class. trunk: not looked at.
        """
        hidden = torch.cat([pyramid.dense(0, sizes[0]), coarse[:, None].to(pyramid.coarse.dtype)], 1)
        layers = list(self.layers.values())
        for convolution in layers[: self.num_conv]:
            hidden = F.relu(convolution(hidden))
        root, *finer = layers[self.num_conv :]
        levels = [root(hidden)[:, 0]]
        for depth, (layer, size) in enumerate(zip(finer, sizes[1:], strict=True), start=1):
            levels.append(_guided_logits(layer, pyramid, depth, size, levels[-1]))
        return levels

    def targets(self, instances: Instances, sizes: list[int]) -> list[Tensor]:
        """Equation 1 on the masks cut to their boxes, nested, some of them jittered; bool (M, S, S) a level."""
        regions = incoherent_regions(crop_masks(instances, 2 * sizes[-1]), len(sizes))
        return nest(jitter(regions, self.jitter))

    def loss(self, logits: list[Tensor], targets: list[Tensor], weights: PixelWeights | None = None) -> Tensor:
        """Binary cross entropy, averaged over the places of a level and over levels (L_inc of section 3.3)."""
        terms = [
            F.binary_cross_entropy_with_logits(
                level, target, weights.at(level.shape[-1]) if weights is not None else None
            )
            for level, target in zip(logits, targets, strict=True)
        ]
        return torch.stack(terms).mean()


def _guided_logits(layer: nn.Module, pyramid: RoIPyramid, depth: int, size: int, coarser: Tensor) -> Tensor:
    """One 1x1 convolution on [RoI feature, upsampled guidance if any] without ever pooling C channels."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    channels = pyramid.coarse.shape[1]
    logits = pyramid.project(layer.weight[:, :channels]).dense(depth, size)[:, 0] + layer.bias
    if layer.in_channels == channels:
        return logits
    return logits + layer.weight[0, -1, 0, 0] * double(coarser.sigmoid())
