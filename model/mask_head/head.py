"""The Mask Transfiner mask head: coarse masks, incoherent regions, and their refinement on the quadtree.

Shape shorthand: R RoIs, K classes, C channels, S0 = 28 the coarse side, L quadtree levels, S the side of a grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from model.mask_head.incoherence import Detection, build_detection
from model.mask_head.losses import mask_branch_losses
from model.mask_head.quadtree import (
    LimitNodes,
    Nodes,
    Permutation,
    RefinementSettings,
    boundary_regions,
    boundary_uncertainty,
    full_regions,
    node_limit,
    nodes_of,
    propagate,
    rois_to_refine,
    select_incoherent_regions,
    trust_in_refinement,
)
from model.mask_head.refiner import QuadtreeRefinement, SequenceRefiner, resize_masks
from model.mask_head.roi_features import RoIPyramid


@ROI_MASK_HEAD_REGISTRY.register()
class TransfinerMaskHead(nn.Module):
    """Predicts coarse masks and refines every detected instance where the coarse mask is incoherent.

    Module names are the released checkpoints'. ``deconv_bo``, ``predictor_bo`` and ``predictor_semantic_s`` serve
    training only, and only preset ``released`` has them.
    """

    @configurable
    def __init__(
        self,
        channels: int,
        *,
        num_classes: int,
        coarse_size: int,
        conv_dim: int,
        num_conv: int,
        detection: Detection | None,
        refiner: SequenceRefiner,
        settings: RefinementSettings,
        loss_weights: dict[str, float],
        auxiliary: bool = True,
    ) -> None:
        """``num_classes`` is 1 for class-agnostic masks; ``auxiliary`` adds the boundary and semantic branches."""
        super().__init__()
        if conv_dim != channels:
            raise ValueError(f"ROI_MASK_HEAD.CONV_DIM must equal the FPN's {channels} channels, got {conv_dim}")
        self.settings = settings
        self.loss_weights = loss_weights
        self.sizes = list(settings.level_sizes)
        self.auxiliary = auxiliary
        self.coarse_size = coarse_size
        self.permutation: Permutation = torch.randperm
        self.coarse_names = [f"mask_fcn{k + 1}" for k in range(num_conv)]
        for name in self.coarse_names:
            self.add_module(name, nn.Conv2d(channels, conv_dim, 3, padding=1))
            weight_init.c2_msra_fill(getattr(self, name))
        self.detection = detection
        for name, layer in detection.layers.items() if detection else ():
            self.add_module(name, layer)
        self.deconv, self.predictor = upsampled_predictor(conv_dim, num_classes)
        if auxiliary:
            self.deconv_bo, self.predictor_bo = upsampled_predictor(conv_dim, 1)
            self.predictor_semantic_s = nn.Conv2d(channels, 1, 1)
        self.encoder = refiner if self.sizes else None
        self.refine = QuadtreeRefinement(
            refiner,
            self.sizes,
            coarse_size,
            reference_points=settings.reference_points,
            joint_levels=settings.joint_levels,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments of the constructor from a configuration; ``input_shape`` is the 14x14 RoI feature's."""
        node, head = cfg.MODEL.TRANSFINER, cfg.MODEL.ROI_MASK_HEAD
        channels = input_shape.channels
        return {
            "channels": channels,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "coarse_size": head.POOLER_RESOLUTION,
            "conv_dim": head.CONV_DIM,
            "num_conv": head.NUM_CONV,
            "detection": build_detection(node, channels, head.CONV_DIM, head.NUM_CONV),
            "refiner": SequenceRefiner(
                channels,
                sizes=(head.POOLER_RESOLUTION, *node.LEVEL_SIZES),
                layers=node.ENCODER_LAYERS,
                heads=node.ENCODER_HEADS,
                ffn_dim=node.ENCODER_FFN_DIM,
                dropout=node.ENCODER_DROPOUT,
                kind=node.REFINER,
                cues=tuple(node.CUES),
                position_place=node.POSITION,
                decoder=node.DECODER,
                max_tokens=node.MAX_TOKENS,
            ),
            "settings": RefinementSettings.from_config(node),
            "loss_weights": {name.lower(): weight for name, weight in node.LOSS_WEIGHTS.items()},
            "auxiliary": node.AUXILIARY_BRANCHES,
        }

    def forward(self, pyramid: RoIPyramid, instances: list[Instances]) -> Any:
        """Losses by name in training; in inference ``instances`` with ``pred_masks`` (R, 1, 112, 112)."""
        if self.training:
            return mask_branch_losses(self, pyramid, instances)
        return predict_masks(self, pyramid, instances)

    def coarse(self, pyramid: RoIPyramid, classes: Tensor, *, detect: bool = True) -> CoarseOutput:
        """The convolutional part: masks of each RoI's class (R,), and with ``detect`` its incoherent regions."""
        trunk = pyramid.coarse
        for name in self.coarse_names:
            trunk = F.relu(getattr(self, name)(trunk))
        upsampled = F.relu(self.deconv(trunk))
        logits = own_class(self.predictor, upsampled, classes)
        probabilities = logits.detach().sigmoid()
        incoherence = self.detection(pyramid, trunk, probabilities, self.sizes) if self.detection and detect else []
        return CoarseOutput(logits, incoherence, trunk, upsampled if self.refine.needs_coarse_features else None)

    def boundary(self, output: CoarseOutput) -> Tensor:
        """Logits of the contour, (R, S0, S0); an auxiliary output that only training asks for."""
        return self.predictor_bo(F.relu(self.deconv_bo(output.trunk)))[:, 0]

    def find_nodes(self, output: CoarseOutput) -> list[Nodes]:
        """The places to refine on each level, by the settings' kind of region."""
        settings = self.settings
        if settings.region == "full":
            regions = full_regions(len(output.logits), self.sizes, output.logits.device)
        elif settings.region == "boundary":
            coarse = output.logits.detach().float().sigmoid()
            regions = boundary_regions([resize_masks(coarse, size) for size in self.sizes])
        else:
            regions = select_incoherent_regions(
                [level.detach().float().sigmoid() for level in output.incoherence],
                settings.thresholds_train if self.training else settings.thresholds_test,
                nested=settings.nested,
                dilate_finest=settings.dilate_and_blur and not self.training,
            )
        return [nodes_of(region) for region in regions]

    @property
    def output_size(self) -> int:
        """Side of the predicted masks; the coarse 28 at depth 0."""
        return self.sizes[-1] if self.sizes else 2 * self.coarse_size


@dataclass(frozen=True)
class CoarseOutput:
    """What the convolutional part predicts for R RoIs.

    Attributes:
        logits: (R, S0, S0) coarse mask of each RoI's class.
        incoherence: logits of L levels, (R, S, S) each; empty where regions are not detected.
        trunk: (R, C, 14, 14) the coarse head's last features.
        upsampled: (R, C, S0, S0) what ``logits`` were predicted from; None where the refiner does not ask for it.
    """

    logits: Tensor
    incoherence: list[Tensor]
    trunk: Tensor
    upsampled: Tensor | None = None

    def select(self, index: Tensor) -> CoarseOutput:
        """Return the output of some of the RoIs."""
        upsampled = None if self.upsampled is None else self.upsampled[index]
        incoherence = [level[index] for level in self.incoherence]
        return CoarseOutput(self.logits[index], incoherence, self.trunk[index], upsampled)


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


def predict_masks(head: TransfinerMaskHead, pyramid: RoIPyramid, instances: list[Instances]) -> list[Instances]:
    """Predict the masks of all instances, and refine those that the settings do not leave out."""
    output = head.coarse(pyramid, torch.cat([i.pred_classes for i in instances]))
    coarse = output.logits.float().sigmoid()
    upsampled = resize_masks(coarse, head.output_size)
    masks, uncertainty, node_counts = upsampled, coarse.new_zeros(len(coarse)), coarse.new_zeros(len(coarse))
    roi_indices = rois_to_refine(instances, head.settings)
    if len(roi_indices) and head.sizes:
        refined, uncertainties, nodes = refine_masks(
            head,
            pyramid.select(roi_indices),
            output.select(roi_indices),
            node_limit(instances, roi_indices, head.settings.test_node_budget),
        )
        trust = trust_in_refinement(instances, head.settings)[roi_indices, None, None].to(refined.dtype)
        masks = upsampled.index_copy(0, roi_indices, torch.lerp(upsampled[roi_indices], refined, trust))
        uncertainty = uncertainty.index_copy(0, roi_indices, uncertainties)
        node_counts = node_counts.index_copy(0, roi_indices, nodes.to(node_counts.dtype))
    counts = [len(image) for image in instances]
    for image, mask, coarse_mask, uncertainties, nodes in zip(
        instances,
        masks.split(counts),
        upsampled.split(counts),
        uncertainty.split(counts),
        node_counts.split(counts),
        strict=True,
    ):
        image.pred_masks, image.uncertainty, image.incoherent_nodes = mask[:, None], uncertainties, nodes
        if head.settings.keep_coarse:
            image.pred_coarse_masks = coarse_mask[:, None]
    return instances


def refine_masks(
    head: TransfinerMaskHead, pyramid: RoIPyramid, output: CoarseOutput, limit: LimitNodes | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Refined probabilities (R, 112, 112) of R instances, each one's uncertainty (R,) and incoherent nodes (R,)."""
    settings = head.settings
    coarse = output.logits.float().sigmoid()
    levels = head.find_nodes(output)
    node_counts = torch.stack([level.counts(len(coarse)) for level in levels]).sum(0)
    if limit is not None:
        levels = limit(levels, [level.float().sigmoid() for level in output.incoherence])
    values = head.refine.in_parts(pyramid, coarse, levels, settings.test_sequence_nodes, output.upsampled)
    values = [value.float() for value in values]
    masks = propagate(coarse, levels, values, head.sizes, settings.propagation)
    if settings.dilate_and_blur:
        masks = _binomial_blur(masks)
    return masks, boundary_uncertainty(levels, values, len(coarse)), node_counts


def _binomial_blur(masks: Tensor) -> Tensor:
    """7x7 binomial blur with zero padding, (R, S, S)."""
    row = masks.new_tensor([1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0]) / 64
    return F.conv2d(masks[:, None], torch.outer(row, row)[None, None], padding=3)[:, 0]
