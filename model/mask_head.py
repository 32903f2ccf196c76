"""The Mask Transfiner mask head: coarse masks, incoherent regions, and their refinement on the quadtree.

Shape shorthand: R RoIs, K classes, C channels, S0 = 28 the coarse side, L quadtree levels, T tokens.
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

from model import losses
from model.incoherence import incoherence_layers
from model.mask_losses import mask_branch_losses
from model.quadtree import Nodes, Permutation, boundary_uncertainty, find_nodes, propagate, sequence_order
from model.refiner import SequenceRefiner, position_table
from model.roi_pyramid import RoIPyramid


@dataclass(frozen=True)
class RefinementSettings:
    """Settings of the quadtree; the fields are the lower-cased keys of ``MODEL.TRANSFINER`` (see config.py)."""

    level_sizes: tuple[int, ...] = (28, 56, 112)
    thresholds_train: tuple[float, ...] = (0.125, 0.5, 0.5)
    thresholds_test: tuple[float, ...] = (1e-6, 0.125, 0.8)
    samples_per_level: int = 150
    min_nodes_per_level: int = 10
    train_instance_limit: int = 30
    test_instance_limit: int = 0
    incoherence_target: str = "absolute"
    dilate_and_blur: bool = False
    keep_coarse: bool = False

    @classmethod
    def from_config(cls, node: CfgNode) -> RefinementSettings:
        """Read the fields from ``cfg.MODEL.TRANSFINER``."""
        values: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            value = node[name.upper()]
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


@dataclass(frozen=True)
class CoarseOutput:
    """What the convolutional part predicts: ``logits`` (R, K, S0, S0), ``incoherence`` logits (R, S0, S0), and the
    last coarse features ``trunk`` (R, C, 14, 14)."""

    logits: Tensor
    incoherence: Tensor
    trunk: Tensor


@ROI_MASK_HEAD_REGISTRY.register()
class TransfinerMaskHead(nn.Module):
    """Predicts coarse masks and refines every detected instance where the coarse mask is incoherent.

    Module names are the released checkpoints'. ``deconv_bo``, ``predictor_bo`` and ``predictor_semantic_s`` serve
    training only.
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
        incoherence_dim: int,
        refiner: SequenceRefiner,
        settings: RefinementSettings,
        loss_weights: dict[str, float],
    ) -> None:
        super().__init__()
        if conv_dim != channels:
            raise ValueError(
                f"ROI_MASK_HEAD.CONV_DIM must equal the FPN's {channels} channels, got {conv_dim}"
            )
        self.settings = settings
        self.loss_weights = loss_weights
        self.sizes = list(settings.level_sizes)
        self.coarse_names = [f"mask_fcn{k + 1}" for k in range(num_conv)]
        for name in self.coarse_names:
            self.add_module(name, nn.Conv2d(channels, conv_dim, 3, padding=1))
            weight_init.c2_msra_fill(getattr(self, name))
        detector = incoherence_layers(channels, conv_dim, incoherence_dim, num_conv)
        self.incoherence_names = list(detector)
        for name, layer in detector.items():
            self.add_module(name, layer)
        self.deconv, self.predictor = _upsampled_predictor(conv_dim, num_classes)
        self.deconv_bo, self.predictor_bo = _upsampled_predictor(conv_dim, 1)
        self.predictor_semantic_s = nn.Conv2d(channels, 1, 1)
        self.encoder = refiner
        for size in (coarse_size, *self.sizes):
            self.register_buffer(f"positions_{size}", position_table(size, channels), persistent=False)
        self.coarse_size = coarse_size
        self.permutation: Permutation = torch.randperm

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
            "incoherence_dim": node.INCOHERENCE_DIM,
            "refiner": SequenceRefiner(
                channels,
                node.ENCODER_LAYERS,
                node.ENCODER_HEADS,
                node.ENCODER_FFN_DIM,
                node.ENCODER_DROPOUT,
                node.MAX_TOKENS,
            ),
            "settings": RefinementSettings.from_config(node),
            "loss_weights": {name.lower(): weight for name, weight in node.LOSS_WEIGHTS.items()},
        }

    def forward(self, pyramid: RoIPyramid, instances: list[Instances]) -> Any:
        """Losses by name in training; in inference ``instances`` with ``pred_masks`` (R, 1, 112, 112)."""
        if self.training:
            return mask_branch_losses(self, pyramid, instances)
        return self._predict(pyramid, instances)

    def coarse(self, pyramid: RoIPyramid) -> CoarseOutput:
        """The convolutional part. The incoherence detector sees the RoI feature detached."""
        trunk = pyramid.coarse
        for name in self.coarse_names:
            trunk = F.relu(getattr(self, name)(trunk))
        *convolutions, deconv, predictor = (getattr(self, name) for name in self.incoherence_names)
        hidden = pyramid.coarse.detach() + trunk
        for convolution in convolutions:
            hidden = F.relu(convolution(hidden))
        incoherence = predictor(deconv(hidden))[:, 0]
        return CoarseOutput(self.predictor(F.relu(self.deconv(trunk))), incoherence, trunk)

    def boundary(self, output: CoarseOutput) -> Tensor:
        """Logits of the contour, (R, S0, S0); an auxiliary output that only training asks for."""
        return self.predictor_bo(F.relu(self.deconv_bo(output.trunk)))[:, 0]

    def refine(
        self, pyramid: RoIPyramid, coarse: Tensor, levels: list[Nodes], rois: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Refined probabilities of the reference points and of every level's nodes.

        Args:
            pyramid: of R RoIs; coarse: (R, S0, S0) coarse probabilities; levels: nodes that refer to the R RoIs.
            rois: int64 (R',) the RoIs that have a sequence; the nodes belong to these only.

        Returns:
            references (R', 14 * 14) and L tensors (Q,).
        """
        side = self.coarse_size
        reference_coarse = resize_masks(coarse[rois], side).flatten()
        features = [pyramid.coarse[rois].permute(0, 2, 3, 1).flatten(0, 2), *pyramid.at(levels, self.sizes)]
        values = [
            reference_coarse,
            *(n.of(resize_masks(coarse, s)) for n, s in zip(levels, self.sizes, strict=True)),
        ]
        reference_positions = self.positions(side).flatten(0, 1).repeat(len(rois), 1)
        positions = [
            reference_positions,
            *(self.positions(s)[n.y, n.x] for n, s in zip(levels, self.sizes, strict=True)),
        ]
        owners = [rois.repeat_interleave(side * side), *(n.roi for n in levels)]
        order = sequence_order(owners)
        lengths = torch.bincount(torch.cat(owners), minlength=len(coarse))[rois].tolist()
        packed = self.encoder(
            torch.cat(features)[order], torch.cat(values)[order], torch.cat(positions)[order], lengths
        )
        refined = torch.empty_like(packed).index_copy(0, order, packed)
        references, *by_level = refined.split([len(part) for part in owners])
        return references.unflatten(0, (len(rois), -1)), by_level

    def positions(self, size: int) -> Tensor:
        """Position encoding of a level's grid, (size, size, C)."""
        return getattr(self, f"positions_{size}")

    def _predict(self, pyramid: RoIPyramid, instances: list[Instances]) -> list[Instances]:
        """Every instance is refined, or the first ``test_instance_limit`` of the batch (the released code: 10)."""
        output = self.coarse(pyramid)
        classes = torch.cat([i.pred_classes for i in instances])
        coarse = losses.select_class(output.logits, classes).sigmoid().float()
        masks = resize_masks(coarse, self.sizes[-1])
        uncertainty = coarse.new_zeros(len(coarse))
        limit = self.settings.test_instance_limit or len(coarse)
        if min(limit, len(coarse)) > 0:
            first = torch.arange(min(limit, len(coarse)), device=coarse.device)
            refined, doubt = self.refine_masks(
                pyramid.select(first), coarse[first], output.incoherence[first]
            )
            masks = torch.cat([refined, masks[len(first) :]])
            uncertainty[first] = doubt
        upsampled = resize_masks(coarse, self.sizes[-1])
        start = 0
        for image in instances:
            rows = slice(start, start + len(image))
            image.pred_masks = masks[rows, None]
            image.uncertainty = uncertainty[rows]
            if self.settings.keep_coarse:
                image.pred_coarse_masks = upsampled[rows, None]
            start = rows.stop
        return instances

    def refine_masks(self, pyramid: RoIPyramid, coarse: Tensor, incoherence: Tensor) -> tuple[Tensor, Tensor]:
        """Refine R instances.

        Args:
            coarse: (R, S0, S0) probabilities; incoherence: (R, S0, S0) logits.

        Returns:
            (R, 112, 112) probabilities, and each instance's uncertainty (R,).
        """
        settings = self.settings
        levels = find_nodes(
            incoherence.float().sigmoid(),
            self.sizes,
            list(settings.thresholds_test),
            settings.dilate_and_blur,
        )
        everyone = torch.arange(len(coarse), device=coarse.device)
        _, values = self.refine(pyramid, coarse, levels, everyone)
        values = [v.float() for v in values]
        masks = propagate(coarse, levels, values, self.sizes)
        if settings.dilate_and_blur:
            masks = _binomial_blur(masks)
        return masks, boundary_uncertainty(levels, values, len(coarse))


def _upsampled_predictor(channels: int, outputs: int) -> tuple[nn.ConvTranspose2d, nn.Conv2d]:
    deconv, predictor = nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.Conv2d(channels, outputs, 1)
    weight_init.c2_msra_fill(deconv)
    nn.init.normal_(predictor.weight, std=0.001)
    assert predictor.bias is not None
    nn.init.zeros_(predictor.bias)
    return deconv, predictor


def resize_masks(probabilities: Tensor, size: int) -> Tensor:
    """(R, S, S) to (R, size, size), bilinear; the same tensor where the size fits already."""
    if probabilities.shape[-1] == size:
        return probabilities
    return F.interpolate(probabilities[:, None], (size, size), mode="bilinear")[:, 0]


def _binomial_blur(masks: Tensor) -> Tensor:
    """7x7 binomial blur with zero padding, (R, S, S)."""
    row = masks.new_tensor([1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0]) / 64
    return F.conv2d(masks[:, None], torch.outer(row, row)[None, None], padding=3)[:, 0]
