"""Swin Transformer with a feature pyramid, in the released checkpoints' names: stage2..stage5 at strides 4..32.

Source: arXiv 2103.14030. Shape shorthand in this module: N images, H x W a grid of tokens, C channels, A attention
heads, M the window's side, T = M * M tokens of a window, B windows of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

PATCH_PX = 4
FEATURES = ("stage2", "stage3", "stage4", "stage5")
# Added to the attention between tokens that only the cyclic shift made neighbours (the authors' value).
APART = -100.0


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


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for each relative position (section 3.2, equation 4)."""

    relative_position_index: Tensor

    def __init__(self, channels: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        # The released files hold this table of constants, so it is a stored buffer here too.
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, apart: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, C); `apart`: None or (windows of an image, T, T), added to the attention."""
        count, tokens, channels = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.reshape(tokens, tokens, self.heads).permute(2, 0, 1)[None]
        if apart is not None:
            bias = (bias + apart[:, None]).repeat(count // len(apart), 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        projected: Tensor = self.proj(y.transpose(1, 2).reshape(count, tokens, channels))
        return projected


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Attention in windows, shifted by `shift` tokens, then an MLP; both residual, normalised before."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, window, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def forward(self, x: Tensor, apart: Tensor | None) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        x = x + self._skip_in_training(self._attend(self.norm1(x), apart))
        return x + self._skip_in_training(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, apart: Tensor | None) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded_hw = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = self.attn(to_windows(x, self.window), apart if self.shift else None)
        x = from_windows(windows, self.window, padded_hw[0], padded_hw[1])
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def _skip_in_training(self, branch: Tensor) -> Tensor:
        """Stochastic depth: leave the branch out for a random part of the images, scale the rest up."""
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)


class PatchMerging(nn.Module):
    """2 x 2 neighbours become one token of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, ceil(H / 2), ceil(W / 2), 2 C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # Column by column: the order of channels the released weights expect.
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(corners, dim=-1)))
        return merged


class SwinStage(nn.Module):
    """Blocks of one resolution, every second one shifted, and the merging that leads to the next stage."""

    def __init__(
        self, channels: int, heads: int, window: int, mlp_ratio: float, drop_paths: Sequence[float], last: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, window // 2 if index % 2 else 0, mlp_ratio, drop_path)
            for index, drop_path in enumerate(drop_paths)
        )
        self.downsample = None if last else PatchMerging(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, C), before merging."""
        apart = shifted_apart(x.shape[1], x.shape[2], self.window, x.device)
        for block in self.blocks:
            x = block(x, apart)
        return x


class PatchEmbedding(nn.Module):
    """4 x 4 pixels become one token."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels_in, channels, PATCH_PX, PATCH_PX)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, pixels, pixels) -> (N, H, W, C)."""
        x = F.pad(x, (0, -x.shape[3] % PATCH_PX, 0, -x.shape[2] % PATCH_PX))
        embedded: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return embedded


class Swin(Backbone):
    """The four stages; each returned feature has a normalisation of its own.

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
        super().__init__()
        if len(depths) != len(FEATURES) or len(heads) != len(FEATURES):
            raise ValueError(f"MODEL.SWIN.DEPTHS and NUM_HEADS need 4 numbers each, got {depths} and {heads}")
        if unknown := set(out_features) - set(FEATURES):
            raise ValueError(f"unknown Swin features {sorted(unknown)}, expected some of {list(FEATURES)}")
        self._out_features = [name for name in FEATURES if name in out_features]
        self.patch_embed = PatchEmbedding(channels_in, embed_dim)
        self.layers = nn.ModuleList(
            SwinStage(embed_dim * 2**i, heads[i], window, mlp_ratio, drop_paths(drop_path_rate, depths, i), i == 3)
            for i in range(4)
        )
        for index, name in enumerate(FEATURES):
            if name in self._out_features:
                self.add_module(f"norm{index}", nn.LayerNorm(embed_dim * 2**index))
        self._channels = {name: embed_dim * 2**index for index, name in enumerate(FEATURES)}
        self.apply(_initialise)
        for part in [self.patch_embed, *self.layers][:freeze_at]:
            part.requires_grad_(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, pixels, pixels) -> features by name, (N, C, H, W)."""
        x = self.patch_embed(image)
        features = {}
        for index, (name, layer) in enumerate(zip(FEATURES, self.layers, strict=True)):
            stage = cast(SwinStage, layer)
            x = stage(x)
            if name in self._out_features:
                features[name] = getattr(self, f"norm{index}")(x).permute(0, 3, 1, 2).contiguous()
            if stage.downsample is not None:
                x = stage.downsample(x)
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each returned feature."""
        return {
            name: ShapeSpec(channels=self._channels[name], stride=PATCH_PX * 2 ** FEATURES.index(name))
            for name in self._out_features
        }


def drop_paths(rate: float, depths: Sequence[int], stage: int) -> list[float]:
    """Drop probability of each block of a stage: from 0 at the network's first block to `rate` at its last."""
    first = sum(depths[:stage])
    return [rate * block / max(sum(depths) - 1, 1) for block in range(first, first + depths[stage])]


def relative_positions(window: int) -> Tensor:
    """(T, T) row of the bias table for each pair of tokens of a window: their offset, as one number."""
    places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset_y, offset_x = places[:, :, None] - places[:, None, :] + window - 1
    return offset_y * (2 * window - 1) + offset_x


def to_windows(x: Tensor, window: int) -> Tensor:
    """(N, H, W, C), both sides multiples of the window -> (B, T, C)."""
    images, height, width, channels = x.shape
    x = x.reshape(images, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`."""
    channels = windows.shape[-1]
    x = windows.reshape(-1, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def shifted_apart(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """(windows of an image, T, T): APART where the cyclic shift put tokens of different image regions together."""
    bands = [_bands(size + -size % window, window, device) for size in (height, width)]
    regions = to_windows((bands[0][:, None] * 3 + bands[1][None, :])[None, ..., None], window)[..., 0]
    return torch.where(regions[:, :, None] == regions[:, None, :], 0.0, APART)


def _bands(size: int, window: int, device: torch.device) -> Tensor:
    """For each place of a shifted axis: 0 before the last window, 1 its first part, 2 what the shift brought there."""
    place = torch.arange(size, device=device)
    return (place >= size - window).long() + (place >= size - window // 2).long()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


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
