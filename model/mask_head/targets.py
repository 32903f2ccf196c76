"""Training targets of the mask branch on the RoI grid, and how much each place counts in its losses.

Finetuning looks harder where people corrected: ground truth may carry three more fields than detectron2's, which its
sampling copies to the proposals. ``gt_weights`` (R,) is the weight of an instance, ``gt_bands`` (BitMasks) where its
outline was moved, and ``gt_band_weights`` (R,) the factor of places in that band. An image without them counts 1.

Shape shorthand: R foreground RoIs of all images, S side of a grid, N images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.structures import BitMasks, Instances
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align


@dataclass(frozen=True)
class MaskTargets:
    """Ground truth of R foreground RoIs.

    Attributes:
        classes: (R,) int64.
        masks: side -> (R, side, side) float in {0, 1}.
        incoherence: per level (R, S, S) float in {0, 1}, as many levels as the detector is trained on.
    """

    classes: Tensor
    masks: dict[int, Tensor]
    incoherence: list[Tensor]


def mask_targets(
    instances: list[Instances], sizes: list[int], incoherence: Callable[[Instances], list[Tensor]]
) -> MaskTargets:
    """Targets of the foreground proposals of a batch; images without any are left out.

    Args:
        instances: with ``proposal_boxes``, ``gt_classes`` and ``gt_masks`` (polygons or bitmasks).
        sizes: grid sides to cut the masks at; incoherence: bool regions of an image's proposals, by level.
    """
    images = [i for i in instances if len(i) > 0]
    regions = [incoherence(i) for i in images]
    return MaskTargets(
        torch.cat([i.gt_classes for i in images]),
        {size: torch.cat([crop_masks(i, size) for i in images]).float() for size in sizes},
        [torch.cat(level).float() for level in zip(*regions, strict=True)],
    )


def boundary_target(masks: Tensor) -> Tensor:
    """The two-pixel contour of (R, S, S) masks: one pixel outside, one inside, by a cross-shaped element."""
    outer, inner = _dilate_cross(masks), 1 - _dilate_cross(1 - masks)
    return (outer != inner).float()


def _dilate_cross(masks: Tensor) -> Tensor:
    image = masks[:, None]
    vertical = F.max_pool2d(image, (3, 1), stride=1, padding=(1, 0))
    horizontal = F.max_pool2d(image, (1, 3), stride=1, padding=(0, 1))
    return torch.maximum(vertical, horizontal)[:, 0]


def semantic_target(instances: list[Instances], height: int, width: int, stride: int) -> tuple[Tensor, Tensor]:
    """Union of the foreground masks of each image on the P2 grid, and where that grid shows image, not padding.

    The released code stretches each image's mask over the padded grid; here smaller images of a batch keep their
    place (nearest sampling at every ``stride``-th pixel, which is the same thing for an unpadded image).

    Returns:
        target: (N, 1, height, width) float in {0, 1}; valid: the same shape, bool.
    """
    device = instances[0].proposal_boxes.device if instances else torch.device("cpu")
    target = torch.zeros((len(instances), 1, height, width), device=device)
    valid = torch.zeros_like(target, dtype=torch.bool)
    for index, image in enumerate(instances):
        rows, columns = -(-image.image_size[0] // stride), -(-image.image_size[1] // stride)
        valid[index, 0, :rows, :columns] = True
        if len(image) > 0:
            union = image_masks(image).any(0)
            target[index, 0, :rows, :columns] = union[::stride, ::stride].float()
    return target, valid


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


@dataclass(frozen=True)
class PixelWeights:
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


def pixel_weights(instances: list[Instances], sizes: list[int]) -> PixelWeights | None:
    """Weights of a batch's foreground proposals, in the order of `mask_targets`; None where no image has any.

    Args:
        instances: with ``proposal_boxes``; sizes: sides of the grids that are needed.
    """
    images = [image for image in instances if len(image) > 0]
    if not any(image.has("gt_weights") for image in images):
        return None
    instance_weights = [_instance_weights(image) for image in images]
    places = {size: torch.cat([_band_weights(image, size) for image in images]) for size in sizes}
    return PixelWeights(torch.cat(instance_weights), places)


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
