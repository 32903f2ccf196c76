"""How much each place of a foreground RoI counts in the mask losses: finetuning looks harder where people corrected.

Ground truth may carry three more fields than detectron2's, which its sampling copies to the proposals:
``gt_weights`` (R,) the weight of an instance, ``gt_bands`` (BitMasks) where its outline was moved, and
``gt_band_weights`` (R,) the factor of places in that band. An image without them counts 1 everywhere.

Shape shorthand: R foreground RoIs of all images, S side of a grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import roi_align


@dataclass(frozen=True)
class PlaceWeights:
    """Weights of R RoIs.

    Attributes:
        instances: (R,) of each RoI as a whole.
        places: side -> (R, side, side), relative to the RoI's: 1, or the band's factor.
    """

    instances: Tensor
    places: dict[int, Tensor]

    def at(self, side: int) -> Tensor:
        """Instance and place in one, (R, side, side)."""
        return self.instances[:, None, None] * self.places[side]


def place_weights(instances: list[Instances], sizes: list[int]) -> PlaceWeights | None:
    """Weights of a batch's foreground proposals, in the order of `mask_targets`; None where no image has any.

    Args:
        instances: with ``proposal_boxes``; sizes: sides of the grids that are needed.
    """
    present = [image for image in instances if len(image) > 0]
    if not any(image.has("gt_weights") for image in present):
        return None
    whole = [_instance_weights(image) for image in present]
    places = {size: torch.cat([_band_weights(image, size) for image in present]) for size in sizes}
    return PlaceWeights(torch.cat(whole), places)


def _instance_weights(image: Instances) -> Tensor:
    boxes = image.proposal_boxes.tensor
    return image.gt_weights.to(boxes) if image.has("gt_weights") else boxes.new_ones(len(boxes))


def _band_weights(image: Instances, size: int) -> Tensor:
    """A place belongs to the band as soon as the band touches it: bands are thinner than places of coarse grids."""
    boxes = image.proposal_boxes.tensor
    if not image.has("gt_bands"):
        return boxes.new_ones(len(boxes), size, size)
    bands = image.gt_bands.tensor.to(boxes)[:, None]
    index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None]
    coverage = roi_align(bands, torch.cat([index, boxes], 1), (size, size), 1.0, 0, aligned=True)[:, 0]
    factor = image.gt_band_weights.to(boxes)[:, None, None]
    return torch.where(coverage > 0, factor, torch.ones_like(coverage))
