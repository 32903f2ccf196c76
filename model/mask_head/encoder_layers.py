"""Layers of the sequence encoder, and what Tables 6 and 7 compare it with; all map packed tokens to packed tokens.

Shape shorthand: T tokens of all sequences, packed one after another, C channels, H heads, D channels a head, S the
side of a dense grid.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("transformer", "mlp", "cnn", "non_local")
# Tokens whose wide hidden layer stays in a core's cache, in bf16.
_FEED_FORWARD_ROWS = 1024
# Most attention weights that are stored, in bf16: 32 MiB, as of one sequence of 2048 tokens and 4 heads; and how many
# at a time, so that they stay in a core's cache.
_MOST_STORED_WEIGHTS, _CACHED_WEIGHTS = 1 << 24, 1 << 21


def in_bf16_on_cpu(tensor: Tensor) -> bool:
    """Whether inference runs in bf16 (`model.inference.precision`), for which some operations have a faster form."""
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


@functools.cache
def has_amx() -> bool:
    """Whether the processor multiplies bf16 tiles (AMX); torch's fused attention is fast there, elsewhere not."""
    # Newer than the oldest torch that is supported.
    return hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("amx_bf16"))


class EncoderLayer(nn.Module):
    """Post-norm transformer encoder layer: attention, then a ReLU feed-forward part."""

    def __init__(self, channels: int, heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = SelfAttention(channels, heads, dropout)
        self.linear1 = nn.Linear(channels, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, positions: Tensor | None, lengths: list[int]) -> Tensor:
        """(T, C) to (T, C)."""
        tokens = self.norm1(tokens + self.dropout(self.self_attn(tokens, positions, lengths)))
        return self.norm2(tokens + self.dropout(self._feed_forward(tokens)))

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        if in_bf16_on_cpu(tokens) and not self.training:
            return torch.cat([self.linear2(self._hidden(rows)) for rows in tokens.split(_FEED_FORWARD_ROWS)])
        return self.linear2(self.dropout(F.relu(self.linear1(tokens))))

    def _hidden(self, tokens: Tensor) -> Tensor:
        if torch.backends.mkldnn.is_available():
            # Product and ReLU in one pass over memory, as torch's own compiler has it on a CPU.
            layer = self.linear1
            return torch.ops.mkldnn._linear_pointwise(tokens, layer.weight, layer.bias, "relu", [], "")
        return self.linear1(tokens).relu_()


class MLPLayer(nn.Module):
    """One hidden layer of PointRend's point head: each token for itself (Table 6: three of them, 256 wide)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, positions: Tensor | None, lengths: list[int]) -> Tensor:
        """(T, C) to (T, C)."""
        return F.relu(self.linear(tokens if positions is None else tokens + positions))


class ConvolutionLayer(nn.Module):
    """A 3x3 convolution over a dense RoI (Table 6: four of them); every sequence must be a whole square grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, tokens: Tensor, positions: Tensor | None, lengths: list[int]) -> Tensor:
        """(T, C) to (T, C)."""
        side = math.isqrt(lengths[0]) if lengths else 0
        if any(length != side * side for length in lengths):
            raise ValueError(f"a CNN needs whole square grids as sequences, got lengths {sorted(set(lengths))}")
        inputs = tokens if positions is None else tokens + positions
        grid = inputs.unflatten(0, (len(lengths), side, side)).permute(0, 3, 1, 2)
        return F.relu(self.convolution(grid)).permute(0, 2, 3, 1).flatten(0, 2)


class NonLocalLayer(nn.Module):
    """A non-local block, embedded Gaussian form with half the channels inside (Table 7)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Linear(channels, 3 * (channels // 2))
        self.outer = nn.Linear(channels // 2, channels)

    def forward(self, tokens: Tensor, positions: Tensor | None, lengths: list[int]) -> Tensor:
        """(T, C) to (T, C)."""
        inputs = tokens if positions is None else tokens + positions
        queries, keys, values = self.inner(inputs).unflatten(1, (3, 1, -1)).unbind(1)
        return tokens + self.outer(attend(queries, keys, values, lengths, scale=1.0).flatten(1))


def build_layers(kind: str, channels: int, count: int, heads: int, ffn_dim: int, dropout: float) -> nn.ModuleList:
    """``count`` layers of a kind.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "transformer":
        return nn.ModuleList(EncoderLayer(channels, heads, ffn_dim, dropout) for _ in range(count))
    kinds: dict[str, type[nn.Module]] = {"mlp": MLPLayer, "cnn": ConvolutionLayer, "non_local": NonLocalLayer}
    if kind not in kinds:
        raise ValueError(f"MODEL.TRANSFINER.REFINER must be one of {KINDS}, got {kind!r}")
    return nn.ModuleList(kinds[kind](channels) for _ in range(count))


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, lengths: list[int], dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Attention within each sequence; weights are never stored.

    On the CPU each sequence runs alone (padding only costs there), on a GPU sequences are padded to the longest of
    their chunk. Sequences of one length run as one batch everywhere.

    Args:
        queries, keys, values: (T, H, D); lengths: of the sequences, in order.
        scale: of the logits; 1 / sqrt(D) when None.

    Returns:
        (T, H, D).
    """
    if not lengths:  # nothing incoherent and no reference points
        return queries
    if len(set(lengths)) == 1:
        return _attend_equal(queries, keys, values, len(lengths), dropout, scale)
    if queries.is_cuda:
        return attend_padded(queries, keys, values, lengths, dropout, scale)
    parts = zip(queries.split(lengths), keys.split(lengths), values.split(lengths), strict=True)
    return torch.cat([_attend_equal(q, k, v, 1, dropout, scale) for q, k, v in parts])


def _attend_equal(
    queries: Tensor, keys: Tensor, values: Tensor, sequences: int, dropout: float, scale: float | None
) -> Tensor:
    queries, keys, values = (part.unflatten(0, (sequences, -1)).transpose(1, 2) for part in (queries, keys, values))
    weights = queries.shape[1] * queries.shape[2] ** 2
    stored_weights = weights * sequences if queries.requires_grad else weights  # a backward pass needs all of them
    is_half = queries.dtype == torch.bfloat16 and queries.device.type == "cpu"
    # The fused kernel's backward pass is slower even with AMX.
    is_slow_fused = queries.requires_grad or not has_amx()
    if is_half and is_slow_fused and not dropout and stored_weights <= _MOST_STORED_WEIGHTS:
        groups = (part.split(max(1, _CACHED_WEIGHTS // max(1, weights))) for part in (queries, keys, values))
        results = torch.cat([_attend_stored(q, k, v, scale) for q, k, v in zip(*groups, strict=True)])
    else:
        results = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, scale=scale)
    return results.transpose(1, 2).flatten(0, 1)


def _attend_stored(queries: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> Tensor:
    """Attention as two matrix products with the weights between.

    On processors without AMX torch's fused kernel gains nothing from bf16, and these products do.
    """
    scale = scale or queries.shape[-1] ** -0.5
    return torch.matmul((queries * scale @ keys.transpose(-2, -1)).softmax(-1), values)


def attend_padded(
    queries: Tensor, keys: Tensor, values: Tensor, lengths: list[int], dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """The same, as one batch padded to the longest sequence."""
    queries, keys, values = (
        nn.utils.rnn.pad_sequence(list(part.split(lengths)), batch_first=True).transpose(1, 2)
        for part in (queries, keys, values)
    )
    limit = torch.tensor(lengths, device=queries.device)
    is_valid = torch.arange(max(lengths), device=queries.device) < limit[:, None]
    results = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=is_valid[:, None, None, :], dropout_p=dropout, scale=scale
    )
    return results.transpose(1, 2)[is_valid]


class SelfAttention(nn.Module):
    """Multi-head self-attention; parameters are named as ``nn.MultiheadAttention``'s."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be split into {heads} attention heads")
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor, positions: Tensor | None, lengths: list[int]) -> Tensor:
        """(T, C) to (T, C). Positions (T, C) are added to queries and keys, not to values."""
        start = 2 * tokens.shape[1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        inputs = tokens if positions is None else tokens + positions
        queries, keys = F.linear(inputs, weight[:start], bias[:start]).unflatten(1, (2, self.heads, -1)).unbind(1)
        values = F.linear(tokens, weight[start:], bias[start:]).unflatten(1, (self.heads, -1))
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(queries, keys, values, lengths, dropout).flatten(1))
