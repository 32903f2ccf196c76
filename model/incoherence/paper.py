"""Incoherent regions as the paper defines and detects them (equation 1; section 3.2; section 6.1 for the jitter).

Shape shorthand: R RoIs, C channels, L levels coarse to fine, S the side of a level.
"""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from model.ground_truth import crop_masks
from model.incoherence.released import classifier
from model.place_weights import PlaceWeights
from model.quadtree import double, nest
from model.roi_pyramid import RoIPyramid


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
        most, least = F.max_pool2d(finer, 2), -F.max_pool2d(-finer, 2)
        regions.append(most != least)
        finer = finer[:, ::2, ::2]
    regions.reverse()
    return nest(regions) if nested else regions


def jitter(regions: list[Tensor], probability: float) -> list[Tensor]:
    """Grow the regions of some RoIs by one place, so that the detector learns to miss little (section 6.1).

    The paper says only that boundaries are jittered because recall matters most; growing is our reading.

    Args:
        regions: L bool (R, S, S), coarsest first; probability: of growing, drawn once an RoI.
    """
    chosen = torch.rand(len(regions[0]), device=regions[0].device) < probability
    grown = [F.max_pool2d(region[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0 for region in regions]
    return [torch.where(chosen[:, None, None], more, region) for more, region in zip(grown, regions, strict=True)]


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
        self,
        channels: int,
        conv_dim: int,
        levels: int,
        num_conv: int = 4,
        jitter: float = 0.0,
        guidance: bool = True,
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
            levels.append(_guided(layer, pyramid, depth, size, levels[-1]))
        return levels

    def targets(self, instances: Instances, sizes: list[int]) -> list[Tensor]:
        """Equation 1 on the masks cut to their boxes, nested, some of them jittered; bool (M, S, S) a level."""
        regions = incoherent_regions(crop_masks(instances, 2 * sizes[-1]), len(sizes))
        return nest(jitter(regions, self.jitter))

    def loss(self, logits: list[Tensor], targets: list[Tensor], weights: PlaceWeights | None = None) -> Tensor:
        """Binary cross entropy, averaged over the places of a level and over levels (L_inc of section 3.3)."""
        terms = [
            F.binary_cross_entropy_with_logits(
                level, target, weights.at(level.shape[-1]) if weights is not None else None
            )
            for level, target in zip(logits, targets, strict=True)
        ]
        return torch.stack(terms).mean()


def _guided(layer: nn.Module, pyramid: RoIPyramid, depth: int, size: int, coarser: Tensor) -> Tensor:
    """One 1x1 convolution on [RoI feature, upsampled guidance if any] without ever pooling C channels."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    channels = pyramid.coarse.shape[1]
    projected = pyramid.project(layer.weight[:, :channels]).dense(depth, size)[:, 0] + layer.bias
    if layer.in_channels == channels:
        return projected
    return projected + layer.weight[0, -1, 0, 0] * double(coarser.sigmoid())
