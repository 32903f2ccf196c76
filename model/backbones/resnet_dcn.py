"""ResNet-50/101 with deformable convolution v1 and a feature pyramid, on torchvision's operator.

detectron2's own deformable block needs its compiled extension; this one runs wherever torchvision does and keeps the
released checkpoints' names: beside each deformable `conv2` a `conv2_offset` that predicts 18 channels, a (y, x)
shift for each of the nine taps. Source: arXiv 1703.06211; in the released models res3 to res5.

Shape shorthand in this module: N images, C channels, H x W a feature's size.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

BLOCKS_PER_STAGE = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
OFFSET_CHANNELS = 18


class DeformableBottleneck(BottleneckBlock):
    """detectron2's bottleneck whose 3x3 convolution samples at offsets that a second convolution predicts.

    The offsets start at zero, so that a fresh block equals the plain one.
    """

    def __init__(self, in_channels: int, out_channels: int, **settings: Any) -> None:
        super().__init__(in_channels, out_channels, **settings)
        self.conv2_offset = Conv2d(
            self.conv2.in_channels,
            OFFSET_CHANNELS,
            kernel_size=3,
            stride=self.conv2.stride,
            padding=self.conv2.padding,
            dilation=self.conv2.dilation,
        )
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H / stride, W / stride)."""
        y = F.relu(self.conv1(x))
        conv = self.conv2
        y = deform_conv2d(y, self.conv2_offset(y), conv.weight, None, conv.stride, conv.padding, conv.dilation)
        y = self.conv3(F.relu(y if conv.norm is None else conv.norm(y)))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


@BACKBONE_REGISTRY.register()
def build_resnet_dcn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """ResNet from `cfg.MODEL.RESNETS`, deformable in the stages of `DEFORM_ON_PER_STAGE`.

    Raises:
        ValueError: a depth without bottlenecks, or modulated (v2) or grouped deformation.
    """
    keys = cfg.MODEL.RESNETS
    if keys.DEPTH not in BLOCKS_PER_STAGE:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {keys.DEPTH}, expected one of {sorted(BLOCKS_PER_STAGE)}")
    if keys.DEFORM_MODULATED or keys.DEFORM_NUM_GROUPS != 1 or keys.RES5_DILATION != 1:
        raise ValueError(
            "deformable convolution is v1 with one group and no dilation here; got "
            f"MODEL.RESNETS.DEFORM_MODULATED={keys.DEFORM_MODULATED}, "
            f"DEFORM_NUM_GROUPS={keys.DEFORM_NUM_GROUPS}, RES5_DILATION={keys.RES5_DILATION}"
        )
    stem = BasicStem(in_channels=input_shape.channels, out_channels=keys.STEM_OUT_CHANNELS, norm=keys.NORM)
    stages = [_build_stage(cfg, index) for index in range(4)]
    return ResNet(stem, stages, out_features=keys.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def _build_stage(cfg: CfgNode, index: int) -> list[nn.Module]:
    keys = cfg.MODEL.RESNETS
    blocks = BLOCKS_PER_STAGE[keys.DEPTH][index]
    out_channels = keys.RES2_OUT_CHANNELS * 2**index
    return ResNet.make_stage(
        DeformableBottleneck if keys.DEFORM_ON_PER_STAGE[index] else BottleneckBlock,
        blocks,
        stride_per_block=[1 if index == 0 else 2] + [1] * (blocks - 1),
        in_channels=keys.STEM_OUT_CHANNELS if index == 0 else out_channels // 2,
        out_channels=out_channels,
        bottleneck_channels=keys.NUM_GROUPS * keys.WIDTH_PER_GROUP * 2**index,
        num_groups=keys.NUM_GROUPS,
        norm=keys.NORM,
        stride_in_1x1=keys.STRIDE_IN_1X1,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_dcn_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the residual network with detectron2's feature pyramid on top: p2..p6."""
    return FPN(
        bottom_up=build_resnet_dcn_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
