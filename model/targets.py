"""Training targets of the mask branch on the RoI grid.

Shape shorthand: R foreground RoIs of all images, S side of a grid, N images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from model.ground_truth import crop_masks, image_masks


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
    present = [i for i in instances if len(i) > 0]
    regions = [incoherence(i) for i in present]
    return MaskTargets(
        torch.cat([i.gt_classes for i in present]),
        {size: torch.cat([crop_masks(i, size) for i in present]).float() for size in sizes},
        [torch.cat(level).float() for level in zip(*regions, strict=True)],
    )


def boundary_target(masks: Tensor) -> Tensor:
    """The two-pixel contour of (R, S, S) masks: one pixel outside, one inside, by a cross-shaped element."""
    grown, kept = _dilate_cross(masks), 1 - _dilate_cross(1 - masks)
    return (grown != kept).float()


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
