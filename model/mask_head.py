"""The Mask Transfiner mask head: coarse masks, incoherent regions, and their refinement on the quadtree.

Shape shorthand: R RoIs, K classes, C channels, S0 = 28 the coarse side, L quadtree levels, T tokens.
"""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from model.coarse_mask import CoarseOutput, own_class, upsampled_predictor
from model.incoherence import Detection, build_detection
from model.mask_inference import predict_masks
from model.mask_losses import mask_branch_losses
from model.quadtree import Nodes, Permutation, nodes_of
from model.quadtree_refinement import QuadtreeRefinement, resize_masks
from model.refinement_regions import boundary_regions, full_regions, incoherent_regions
from model.refinement_settings import RefinementSettings
from model.refiner import SequenceRefiner
from model.roi_pyramid import RoIPyramid


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

    def coarse(self, pyramid: RoIPyramid, classes: Tensor) -> CoarseOutput:
        """The convolutional part; ``classes`` (R,) chooses each RoI's mask."""
        trunk = pyramid.coarse
        for name in self.coarse_names:
            trunk = F.relu(getattr(self, name)(trunk))
        logits = own_class(self.predictor, F.relu(self.deconv(trunk)), classes)
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

    @property
    def output_size(self) -> int:
        """Side of the predicted masks; the coarse 28 at depth 0."""
        return self.sizes[-1] if self.sizes else 2 * self.coarse_size
