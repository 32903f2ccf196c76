"""Ground-truth masks on image and RoI grids, whichever way detectron2 holds them."""

from __future__ import annotations

from detectron2.structures import BitMasks, Instances
from torch import Tensor


def crop_masks(instances: Instances, size: int) -> Tensor:
    """Masks cut to their ``proposal_boxes`` on a size x size grid, bool (M, size, size), set from half coverage on."""
    boxes = instances.proposal_boxes.tensor
    return instances.gt_masks.crop_and_resize(boxes, size).to(boxes.device) > 0.5


def image_masks(instances: Instances) -> Tensor:
    """Masks of the whole image, bool (M, H, W)."""
    if isinstance(instances.gt_masks, BitMasks):
        return instances.gt_masks.tensor
    height, width = instances.image_size
    masks = BitMasks.from_polygon_masks(instances.gt_masks, height, width)
    return masks.to(instances.proposal_boxes.device).tensor
