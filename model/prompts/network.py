"""The promptable network: NanoDet's trunk sees a view and its prompts, a pyramid feeds the Mask Transfiner mask head.

A view is the neighbourhood of one object at a fixed size, as in RITM's zoom-in (Sofiiuk et al., 2022). Prompts enter
as maps through a convolution of their own, whose output is added to the stem's and is zero before training. The view
is the RoI of the mask head: coarse mask, incoherent nodes and quadtree refinement are those of every other model here.

Shape shorthand: V views, S = 256 the side of a view, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from model.detectors.nanodet import STEM_CHANNELS, Trunk, normalised
from model.mask_head.head import CoarseOutput, TransfinerMaskHead, refine_masks
from model.mask_head.losses import mask_branch_losses
from model.prompts.pyramid import ROOT_MAP, STRIDES, ViewFeatures, ViewPyramid

VIEW_SIDE = 256
#: Box, positive clicks, negative clicks, earlier mask.
PROMPT_MAPS = 4


class PromptNetwork(nn.Module):
    """Views with prompts in, mask probabilities of the whole view out."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        channels = cfg.MODEL.FPN.OUT_CHANNELS
        self.trunk = Trunk()
        self.prompt_stem = nn.Conv2d(PROMPT_MAPS, STEM_CHANNELS, 3, 2, 1)
        nn.init.zeros_(self.prompt_stem.weight)
        nn.init.zeros_(self.prompt_stem.bias)  # type: ignore[arg-type]
        self.pyramid = ViewPyramid(channels)
        side = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        self.mask_head = TransfinerMaskHead(cfg, ShapeSpec(channels=channels, height=side, width=side))
        # Predicted IoU of the coarse mask: the score of an answer to a prompt, which has no class score.
        self.quality = nn.Sequential(nn.Linear(2 * channels, channels), nn.ReLU(), nn.Linear(channels, 1))
        # Convolutions on a CPU are faster with this layout, in training, too.
        self.to(memory_format=torch.channels_last)

    def features(self, views: Tensor, prompts: Tensor) -> ViewFeatures:
        """The pyramid of (V, 3, S, S) RGB views in 0..255 with (V, 4, S, S) prompt maps."""
        maps, finest_map = self.pyramid(self.trunk(normalised(views), prompts, self.prompt_stem))
        side = self.mask_head.coarse_size
        coarse = maps[2]
        for level in (1, 3, 4):
            coarse = coarse + F.interpolate(maps[level], (side, side), mode="bilinear", align_corners=False)
        numbers = torch.arange(len(views), dtype=torch.float32, device=views.device)
        corners = numbers.new_tensor([0.0, 0.0, VIEW_SIDE, VIEW_SIDE]).expand(len(views), 4)
        rois = torch.cat([numbers[:, None], corners], 1)
        levels = torch.full((len(views),), ROOT_MAP, device=views.device)
        return ViewFeatures(coarse, None, maps, rois, levels, list(STRIDES), finer_by=0, finest=finest_map)

    def coarse(self, pyramid: ViewFeatures, *, detect: bool = True) -> CoarseOutput:
        """Coarse masks of every view, and with ``detect`` incoherence logits."""
        classes = torch.zeros(len(pyramid.rois), dtype=torch.long, device=pyramid.rois.device)
        return self.mask_head.coarse(pyramid, classes, detect=detect)

    def score(self, output: CoarseOutput) -> Tensor:
        """Logits (V,) of the IoU that a view's coarse mask is expected to have."""
        mask = F.adaptive_avg_pool2d(
            output.logits.detach().sigmoid()[:, None], (self.mask_head.coarse_size, self.mask_head.coarse_size)
        )
        trunk = output.trunk.detach()
        inside_mean = (trunk * mask).sum((2, 3)) / mask.sum((2, 3)).clamp(min=1.0)
        return self.quality(torch.cat([inside_mean, trunk.mean((2, 3))], 1).float())[:, 0]

    @torch.no_grad()
    def predict(self, views: Tensor, prompts: Tensor, *, refine: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities (V, 128, 128) of each view's mask, coarse ones of that size, and expected IoUs (V,)."""
        pyramid = self.features(views, prompts)
        output = self.coarse(pyramid, detect=refine)
        coarse = F.interpolate(
            output.logits.float().sigmoid()[:, None], self.mask_head.output_size, mode="bilinear", align_corners=False
        )[:, 0]
        masks = refine_masks(self.mask_head, pyramid, output)[0] if refine else coarse
        return masks, coarse, self.score(output).sigmoid()

    def losses(self, views: Tensor, prompts: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Losses by name, for bool masks (V, S, S) of the views."""
        pyramid = self.features(views, prompts)
        output = self.coarse(pyramid)
        terms: dict[str, Tensor] = mask_branch_losses(self.mask_head, pyramid, view_instances(masks), output)
        probabilities = output.logits.float().sigmoid()
        side = probabilities.shape[-1]
        truth = F.adaptive_avg_pool2d(masks[:, None].float(), side)[:, 0]
        overlap = (probabilities * truth).sum((1, 2))
        terms["loss_dice"] = (1 - (2 * overlap + 1) / (probabilities.sum((1, 2)) + truth.sum((1, 2)) + 1)).mean()
        predicted_mask, true_mask = probabilities.detach() > 0.5, truth > 0.5
        iou = (predicted_mask & true_mask).sum((1, 2)) / (predicted_mask | true_mask).sum((1, 2)).clamp(min=1)
        terms["loss_quality"] = 0.2 * F.binary_cross_entropy_with_logits(self.score(output), iou)
        return terms


def view_instances(masks: Tensor) -> list[Instances]:
    """Each view's mask as the one proposal of an image, whose box is the whole view."""
    side = masks.shape[-1]
    box = Boxes(torch.tensor([[0.0, 0.0, side, side]], device=masks.device))
    label = torch.zeros(1, dtype=torch.long, device=masks.device)
    return [
        Instances((side, side), proposal_boxes=box, gt_classes=label, gt_masks=BitMasks(mask[None])) for mask in masks
    ]


def prompt_maps(
    box_xyxy: Sequence[float] | None,
    points: Sequence[tuple[float, float, bool]],
    mask: Tensor | None,
    *,
    side: int = VIEW_SIDE,
    radius_px: float = 6.0,
) -> Tensor:
    """(4, side, side) maps of prompts in view pixels: the box filled, discs of clicks, the earlier probabilities."""
    maps = torch.zeros(PROMPT_MAPS, side, side)
    centres = torch.arange(side) + 0.5
    if box_xyxy is not None:
        x0, y0, x1, y1 = box_xyxy
        # Cover of each pixel by the box, so that an edge between pixels is seen.
        across = (
            torch.minimum(centres + 0.5, torch.tensor(x1)) - torch.maximum(centres - 0.5, torch.tensor(x0))
        ).clamp(0, 1)
        along = (torch.minimum(centres + 0.5, torch.tensor(y1)) - torch.maximum(centres - 0.5, torch.tensor(y0))).clamp(
            0, 1
        )
        maps[0] = along[:, None] * across[None]
    for x, y, is_positive in points:
        disc = (centres[:, None] - y) ** 2 + (centres[None] - x) ** 2 <= radius_px**2
        maps[1 if is_positive else 2][disc] = 1.0
    if mask is not None:
        maps[3] = mask
    return maps
