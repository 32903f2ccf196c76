"""Swin Transformer with a feature pyramid, in the released checkpoints' names: stage2..stage5 at strides 4..32.

The network is detectron2's, whose parameters are named as in the released files. Source: arXiv 2103.14030.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor
from torchvision.ops import StochasticDepth

FEATURES = ("stage2", "stage3", "stage4", "stage5")


def add_swin_config(cfg: CfgNode) -> None:
    """Add the keys of this backbone under `cfg.MODEL.SWIN`; the defaults are Swin-T."""
    cfg.MODEL.SWIN = CfgNode()
    # Channels of the first stage; each later stage has twice as many.
    cfg.MODEL.SWIN.EMBED_DIM = 96
    # Blocks and attention heads per stage.
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    # Side of the attention windows, in tokens.
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    # Hidden width of a block's MLP, in multiples of its channels.
    cfg.MODEL.SWIN.MLP_RATIO = 4
    # Probability that the last block is skipped in training; earlier blocks proportionally less.
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.2
    cfg.MODEL.SWIN.OUT_FEATURES = list(FEATURES)


class Swin(SwinTransformer):
    """The four stages; each returned feature has a normalisation of its own.

    Stochastic depth is torchvision's: detectron2's takes it from timm, which nothing else here needs.

    Args:
        channels_in: of the image.
        embed_dim, depths, heads, window, mlp_ratio, drop_path_rate, out_features: see `add_swin_config`.
        freeze_at: as detectron2's ResNet: 0 nothing, 1 the patch embedding, 2 also stage2, ... 5.

    Raises:
        ValueError: an unknown feature, or lists of unequal length.
    """

    def __init__(
        self,
        channels_in: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        mlp_ratio: float = 4,
        drop_path_rate: float = 0.2,
        out_features: Sequence[str] = FEATURES,
        freeze_at: int = 0,
    ) -> None:
        if len(depths) != len(FEATURES) or len(heads) != len(FEATURES):
            raise ValueError(f"MODEL.SWIN.DEPTHS and NUM_HEADS need 4 numbers each, got {depths} and {heads}")
        if unknown := set(out_features) - set(FEATURES):
            raise ValueError(f"unknown Swin features {sorted(unknown)}, expected some of {list(FEATURES)}")
        indices = [index for index, name in enumerate(FEATURES) if name in out_features]
        with torch.device("cpu"):  # it reads numbers from tensors, which have none on the device of mere shapes
            super().__init__(
                in_chans=channels_in,
                embed_dim=embed_dim,
                depths=depths,
                num_heads=heads,
                window_size=window,
                mlp_ratio=mlp_ratio,
                drop_path_rate=0.0,
                out_indices=indices,
            )
        blocks = [block for layer in self.layers for block in layer.blocks]
        for number, block in enumerate(blocks):
            block.drop_path = StochasticDepth(drop_path_rate * number / max(len(blocks) - 1, 1), "row")
        self._out_features = [FEATURES[index] for index in indices]
        self._out_feature_channels = {FEATURES[index]: embed_dim * 2**index for index in indices}
        self._out_feature_strides = {FEATURES[index]: 4 * 2**index for index in indices}
        for part in [self.patch_embed, *self.layers][:freeze_at]:
            part.requires_grad_(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, pixels, pixels) -> features by name, (N, C, H, W)."""
        return dict(zip(self._out_features, super().forward(image).values(), strict=True))


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Swin:
    """Swin alone, from `cfg.MODEL.SWIN` and `cfg.MODEL.BACKBONE.FREEZE_AT`."""
    keys = cfg.MODEL.SWIN
    return Swin(
        input_shape.channels,
        keys.EMBED_DIM,
        keys.DEPTHS,
        keys.NUM_HEADS,
        keys.WINDOW_SIZE,
        keys.MLP_RATIO,
        keys.DROP_PATH_RATE,
        keys.OUT_FEATURES,
        cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Swin with detectron2's feature pyramid: p2..p6."""
    bottom_up = build_swin_backbone(cfg, input_shape)
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
