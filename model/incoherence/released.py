"""Incoherent regions as the released code and its checkpoints have them: one 28x28 map, finer levels by upsampling.

Shape shorthand: R RoIs, C channels, S0 = 28 the coarse side, M masks, H x W of an image.
"""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from model import losses
from model.ground_truth import image_masks
from model.place_weights import PlaceWeights
from model.roi_pyramid import RoIPyramid

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

    def loss(self, logits: list[Tensor], targets: list[Tensor], weights: PlaceWeights | None = None) -> Tensor:
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
