"""The transformer on quadtree nodes: node encoder, sequence encoder, pixel decoder (section 3.3; released layout).

Shape shorthand: T tokens of all sequences packed one after another, C channels, S side of a grid, B sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# DETR's sine encoding: temperature, and the full turn that a grid's side spans.
TEMPERATURE = 10000.0
TURN = 2 * math.pi


def position_table(size: int, channels: int) -> Tensor:
    """Sine position encoding of a size x size grid, (size, size, channels); y in the first half of the channels."""
    if channels % 4:
        raise ValueError(f"position encoding needs channels divisible by 4, got {channels}")
    half = channels // 2
    steps = torch.arange(1, size + 1, dtype=torch.float32) / (size + 1e-6) * TURN
    exponent = 2 * torch.div(torch.arange(half), 2, rounding_mode="floor") / half
    angle = steps[:, None] / TEMPERATURE**exponent
    encoded = torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)
    rows = encoded[:, None, :].expand(size, size, half)
    columns = encoded[None, :, :].expand(size, size, half)
    return torch.cat([rows, columns], dim=2)


class SelfAttention(nn.Module):
    """Multi-head self-attention over packed sequences; parameters are named as ``nn.MultiheadAttention``'s.

    Weights are never stored: on the CPU each sequence runs alone (padding only costs there), on a GPU sequences
    are padded to the longest of their chunk.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be split into {heads} attention heads")
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor, positions: Tensor, lengths: list[int]) -> Tensor:
        """Positions are added to queries and keys, not to values. All (T, C); lengths of B sequences sum to T."""
        channels = tokens.shape[1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        queries_keys = F.linear(tokens + positions, weight[: 2 * channels], bias[: 2 * channels])
        values = F.linear(tokens, weight[2 * channels :], bias[2 * channels :])
        mixed = torch.cat([queries_keys, values], dim=1).unflatten(1, (3, self.heads, -1))
        return self.out_proj(self._attend(mixed, lengths).flatten(1))

    def _attend(self, mixed: Tensor, lengths: list[int]) -> Tensor:
        """(T, 3, heads, C / heads) to (T, heads, C / heads)."""
        if len(set(lengths)) == 1:
            return self._attend_equal(mixed, len(lengths))
        if mixed.is_cuda:
            return self._attend_padded(mixed, lengths)
        return torch.cat([self._attend_equal(part, 1) for part in mixed.split(lengths)])

    def _attend_equal(self, mixed: Tensor, sequences: int) -> Tensor:
        queries, keys, values = mixed.unflatten(0, (sequences, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(0, 1)

    def _attend_padded(self, mixed: Tensor, lengths: list[int]) -> Tensor:
        padded = nn.utils.rnn.pad_sequence(list(mixed.split(lengths)), batch_first=True)
        limit = torch.tensor(lengths, device=mixed.device)
        valid = torch.arange(padded.shape[1], device=mixed.device) < limit[:, None]
        queries, keys, values = padded.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mask = valid[:, None, None, :]
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        return attended.transpose(1, 2)[valid]


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

    def forward(self, tokens: Tensor, positions: Tensor, lengths: list[int]) -> Tensor:
        """(T, C) to (T, C)."""
        tokens = self.norm1(tokens + self.dropout(self.self_attn(tokens, positions, lengths)))
        hidden = self.dropout(F.relu(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class SequenceRefiner(nn.Module):
    """Tokens to refined mask probabilities.

    ``conv_fuse`` and ``conv_r1`` are linear maps stored as 1x1 convolutions, because the checkpoints hold them so.
    """

    def __init__(
        self, channels: int, layers: int, heads: int, ffn_dim: int, dropout: float, max_tokens: int
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.layers = nn.ModuleList(EncoderLayer(channels, heads, ffn_dim, dropout) for _ in range(layers))
        self.conv_fuse = nn.Conv2d(channels + 1, channels, 1)
        self.conv_r1 = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 1, 1), nn.Sigmoid()
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, features: Tensor, coarse: Tensor, positions: Tensor, lengths: list[int]) -> Tensor:
        """Refined probabilities (T,).

        Args:
            features: (T, C) FPN features; coarse: (T,) coarse mask probabilities; positions: (T, C).
            lengths: tokens of each of B sequences, in order.
        """
        tokens = self.encode_nodes(features, coarse)
        return torch.cat(
            [
                self.decode(self.encode(tokens[rows], positions[rows], chunk))
                for rows, chunk in self._chunks(lengths)
            ]
        )

    def encode_nodes(self, features: Tensor, coarse: Tensor) -> Tensor:
        """Node encoder: feature and coarse probability fused to (T, C)."""
        fused = torch.cat([features, coarse[:, None].to(features.dtype)], dim=1)
        return F.linear(fused, self.conv_fuse.weight.flatten(1), self.conv_fuse.bias)

    def encode(self, tokens: Tensor, positions: Tensor, lengths: list[int]) -> Tensor:
        """Sequence encoder, (T, C) to (T, C)."""
        for layer in self.layers:
            tokens = layer(tokens, positions, lengths)
        return tokens

    def decode(self, tokens: Tensor) -> Tensor:
        """Pixel decoder, (T, C) to probabilities (T,)."""
        return self.conv_r1(tokens[:, :, None, None])[:, 0, 0, 0]

    def _chunks(self, lengths: list[int]) -> Iterator[tuple[slice, list[int]]]:
        """Runs of whole sequences of at most ``max_tokens`` tokens (one sequence may exceed it). All in training."""
        start, chunk = 0, list[int]()
        for length in lengths:
            if chunk and sum(chunk) + length > self.max_tokens and not self.training:
                yield slice(start, start + sum(chunk)), chunk
                start, chunk = start + sum(chunk), []
            chunk.append(length)
        yield slice(start, start + sum(chunk)), chunk
