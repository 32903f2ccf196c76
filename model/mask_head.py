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

from model.incoherence import Detection, build_detection
from model.mask_losses import mask_branch_losses
from model.node_encoder import NodeCues, join_cues
from model.quadtree import Nodes, Permutation, boundary_uncertainty, nodes_of, propagate, sequence_order
from model.refinement_regions import boundary_regions, full_regions, incoherent_regions
from model.refinement_settings import RefinementSettings
from model.refiner import SequenceRefiner, position_table
from model.roi_pyramid import RoIPyramid


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
        return CoarseOutput(
            self.logits[index], [level[index] for level in self.incoherence], self.trunk[index]
        )


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
            raise ValueError(
                f"ROI_MASK_HEAD.CONV_DIM must equal the FPN's {channels} channels, got {conv_dim}"
            )
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
        self.deconv, self.predictor = _upsampled_predictor(conv_dim, num_classes)
        if auxiliary:
            self.deconv_bo, self.predictor_bo = _upsampled_predictor(conv_dim, 1)
            self.predictor_semantic_s = nn.Conv2d(channels, 1, 1)
        self.encoder = refiner if self.sizes else None
        for size in {coarse_size, *self.sizes}:
            self.register_buffer(f"positions_{size}", position_table(size, channels), persistent=False)

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
                layers=node.ENCODER_LAYERS,
                heads=node.ENCODER_HEADS,
                ffn_dim=node.ENCODER_FFN_DIM,
                dropout=node.ENCODER_DROPOUT,
                kind=node.REFINER,
                cues=tuple(node.CUES),
                position_place=node.POSITION,
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
        return self._predict(pyramid, instances)

    def coarse(self, pyramid: RoIPyramid, classes: Tensor) -> CoarseOutput:
        """The convolutional part; ``classes`` (R,) chooses each RoI's mask."""
        trunk = pyramid.coarse
        for name in self.coarse_names:
            trunk = F.relu(getattr(self, name)(trunk))
        logits = _own_class(self.predictor, F.relu(self.deconv(trunk)), classes)
        probabilities = logits.detach().sigmoid()
        detected = self.detection(pyramid, trunk, probabilities, self.sizes) if self.detection else []
        return CoarseOutput(logits, detected, trunk)

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
            regions = incoherent_regions(
                [level.detach().float().sigmoid() for level in output.incoherence],
                settings.thresholds_train if self.training else settings.thresholds_test,
                nested=settings.nested,
                dilate_finest=settings.dilate_and_blur and not self.training,
            )
        return [nodes_of(region) for region in regions]

    def refine(
        self, pyramid: RoIPyramid, coarse: Tensor, levels: list[Nodes], rois: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Refined probabilities of the reference points and of every level's nodes.

        All levels of an RoI form one sequence, or one each (Table 8) without ``joint_levels``.

        Args:
            pyramid: of R RoIs; coarse: (R, S0, S0) coarse probabilities; levels: nodes that refer to the R RoIs.
            rois: int64 (R',) the RoIs that have a sequence; the nodes belong to these only.

        Returns:
            references (R' * 14 * 14,), none where they are switched off, and L tensors (Q,).
        """
        cues = self._cues(pyramid, coarse, levels)
        references = self._reference_cues(pyramid, coarse, rois)
        if self.settings.joint_levels:
            return self._refine_sequences(references, rois, levels, cues)
        separate = [
            self._refine_sequences(references, rois, [n], [c]) for n, c in zip(levels, cues, strict=True)
        ]
        return torch.cat([r for r, _ in separate]), [values[0] for _, values in separate]

    def _refine_sequences(
        self, references: NodeCues, rois: Tensor, levels: list[Nodes], cues: list[NodeCues]
    ) -> tuple[Tensor, list[Tensor]]:
        """One sequence an RoI: its reference points, then its nodes level by level."""
        owners = [
            rois.repeat_interleave(len(references.coarse) // max(len(rois), 1)),
            *(n.roi for n in levels),
        ]
        order = sequence_order(owners)
        counts = torch.unique_consecutive(torch.cat(owners)[order], return_counts=True)[1]
        packed = self._refiner()(join_cues([references, *cues]).reordered(order), counts.tolist())
        refined = torch.empty_like(packed).index_copy(0, order, packed)
        found, *by_level = refined.split([len(part) for part in owners])
        return found, by_level

    def _reference_cues(self, pyramid: RoIPyramid, coarse: Tensor, rois: Tensor) -> NodeCues:
        """The coarse RoI feature's places as positive and negative references."""
        if not self.settings.reference_points:
            rois = rois[:0]
        side = self.coarse_size
        feature = pyramid.coarse[rois]
        context = None
        if "context" in self._refiner().node_encoder.cues:
            context = (
                F.unfold(feature, 3, padding=1)
                .unflatten(1, (-1, 9))
                .permute(0, 3, 2, 1)
                .flatten(0, 1)
                .flatten(1)
            )
        return NodeCues(
            feature.permute(0, 2, 3, 1).flatten(0, 2),
            resize_masks(coarse[rois], side).flatten(),
            self.positions(side).flatten(0, 1).repeat(len(rois), 1),
            context,
        )

    def _cues(self, pyramid: RoIPyramid, coarse: Tensor, levels: list[Nodes]) -> list[NodeCues]:
        features = pyramid.at(levels, self.sizes)
        contexts: list[Tensor | None] = [None] * len(levels)
        if "context" in self._refiner().node_encoder.cues:
            around = pyramid.at([nodes.neighbourhood() for nodes in levels], self.sizes)
            contexts = [part.unflatten(0, (-1, 9)).flatten(1) for part in around]
        return [
            NodeCues(
                feature, nodes.of(resize_masks(coarse, size)), self.positions(size)[nodes.y, nodes.x], context
            )
            for feature, nodes, size, context in zip(features, levels, self.sizes, contexts, strict=True)
        ]

    def _refiner(self) -> SequenceRefiner:
        assert self.encoder is not None, "depth 0 refines nothing"
        return self.encoder

    def positions(self, size: int) -> Tensor:
        """Position encoding of a level's grid, (size, size, C)."""
        return getattr(self, f"positions_{size}")

    def _predict(self, pyramid: RoIPyramid, instances: list[Instances]) -> list[Instances]:
        """Every instance is refined, or the first ``test_instance_limit`` of the batch (the released code: 10)."""
        output = self.coarse(pyramid, torch.cat([i.pred_classes for i in instances]))
        coarse = output.logits.float().sigmoid()
        upsampled = resize_masks(coarse, self.output_size)
        masks, uncertainty = upsampled, coarse.new_zeros(len(coarse))
        count = min(self.settings.test_instance_limit or len(coarse), len(coarse))
        if count and self.sizes:
            first = torch.arange(count, device=coarse.device)
            refined, doubt = self.refine_masks(pyramid.select(first), output.select(first))
            masks = torch.cat([refined, upsampled[count:]])
            uncertainty = torch.cat([doubt, uncertainty[count:]])
        counts = [len(image) for image in instances]
        for image, mask, plain, doubt in zip(
            instances, masks.split(counts), upsampled.split(counts), uncertainty.split(counts), strict=True
        ):
            image.pred_masks, image.uncertainty = mask[:, None], doubt
            if self.settings.keep_coarse:
                image.pred_coarse_masks = plain[:, None]
        return instances

    def refine_masks(self, pyramid: RoIPyramid, output: CoarseOutput) -> tuple[Tensor, Tensor]:
        """Refined probabilities (R, 112, 112) of R instances, and each one's uncertainty (R,)."""
        settings = self.settings
        coarse = output.logits.float().sigmoid()
        levels = self.find_nodes(output)
        everyone = torch.arange(len(coarse), device=coarse.device)
        _, values = self.refine(pyramid, coarse, levels, everyone)
        values = [value.float() for value in values]
        masks = propagate(coarse, levels, values, self.sizes, settings.propagation)
        if settings.dilate_and_blur:
            masks = _binomial_blur(masks)
        return masks, boundary_uncertainty(levels, values, len(coarse))

    @property
    def output_size(self) -> int:
        """Side of the predicted masks; the coarse 28 at depth 0."""
        return self.sizes[-1] if self.sizes else 2 * self.coarse_size


def _own_class(predictor: nn.Conv2d, features: Tensor, classes: Tensor) -> Tensor:
    """The 1x1 predictor for each RoI's class alone: (R, C, S, S) and (R,) to (R, S, S)."""
    assert predictor.bias is not None
    if predictor.out_channels == 1:
        classes = torch.zeros_like(classes)
    weight = predictor.weight.flatten(1)[classes]
    return (
        torch.einsum("rchw,rc->rhw", features, weight.to(features.dtype))
        + predictor.bias[classes][:, None, None]
    )


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
