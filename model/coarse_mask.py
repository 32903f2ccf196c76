"""What the convolutional part of the mask branch predicts, and the layers that end it.

Shape shorthand: R RoIs, K classes, C channels, S0 = 28 the coarse side, L quadtree levels, S the side of a grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import fvcore.nn.weight_init as weight_init
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class CoarseOutput:
    """What the convolutional part predicts for R RoIs.

    Attributes:
        logits: (R, S0, S0) coarse mask of each RoI's class.
        incoherence: logits of L levels, (R, S, S) each; empty where regions are not detected.
        trunk: (R, C, 14, 14) the coarse head's last features.
    """

    logits: Tensor
    incoherence: list[Tensor]
    trunk: Tensor

    def select(self, index: Tensor) -> CoarseOutput:
        """The same for some of the RoIs."""
        return CoarseOutput(self.logits[index], [level[index] for level in self.incoherence], self.trunk[index])


def own_class(predictor: nn.Conv2d, features: Tensor, classes: Tensor) -> Tensor:
    """The 1x1 predictor for each RoI's class alone: (R, C, S, S) and (R,) to (R, S, S)."""
    assert predictor.bias is not None
    if predictor.out_channels == 1:
        classes = torch.zeros_like(classes)
    weight = predictor.weight.flatten(1)[classes]
    return torch.einsum("rchw,rc->rhw", features, weight.to(features.dtype)) + predictor.bias[classes][:, None, None]


def upsampled_predictor(channels: int, outputs: int) -> tuple[nn.ConvTranspose2d, nn.Conv2d]:
    deconv, predictor = nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.Conv2d(channels, outputs, 1)
    weight_init.c2_msra_fill(deconv)
    nn.init.normal_(predictor.weight, std=0.001)
    assert predictor.bias is not None
    nn.init.zeros_(predictor.bias)
    return deconv, predictor
