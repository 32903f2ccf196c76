"""Where a coarse mask loses information: the detector of incoherent regions and its training target.

Shape shorthand: R RoIs, C channels, M masks, H x W of an image.
"""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

# Thresholds of the released code's target: on the residue of the half-size mask, then on its RoIAlign average.
RESIDUE_THRESHOLD = 0.01
ROI_THRESHOLD = 0.05
RESIDUES = ("absolute", "signed")


def incoherence_layers(
    channels: int, conv_dim: int, last_dim: int, num_conv: int = 4
) -> dict[str, nn.Module]:
    """Layers of the detector by their checkpoint names.

    Returns:
        ``mask_fcn_uncertain{1..n}`` (the last one ``last_dim`` wide), ``deconv_uncertain``, ``predictor_uncertain``.
    """
    layers: dict[str, nn.Module] = {}
    for k in range(1, num_conv + 1):
        out_channels = last_dim if k == num_conv else conv_dim
        layers[f"mask_fcn_uncertain{k}"] = convolution = nn.Conv2d(channels, out_channels, 3, padding=1)
        weight_init.c2_msra_fill(convolution)
        channels = out_channels
    layers["deconv_uncertain"] = nn.ConvTranspose2d(channels, channels, 2, stride=2)
    weight_init.c2_msra_fill(layers["deconv_uncertain"])
    layers["predictor_uncertain"] = predictor = nn.Conv2d(channels, 1, 1)
    nn.init.normal_(predictor.weight, std=0.001)
    assert predictor.bias is not None
    nn.init.zeros_(predictor.bias)
    return layers


def incoherence_map(masks: Tensor, residue: str = "absolute") -> Tensor:
    """Incoherence of full-image masks at half size, as the released code computes its targets.

    Args:
        masks: (M, H, W) bool or float.
        residue: ``"absolute"`` or ``"signed"`` (the code before 2022-08, which trained the COCO checkpoints).

    Returns:
        (M, H // 2, W // 2) float: 1 where halving and doubling the mask changes it by at least 0.01, else the
        small residue itself.
    """
    if residue not in RESIDUES:
        raise ValueError(f"INCOHERENCE_TARGET must be one of {RESIDUES}, got {residue!r}")
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
