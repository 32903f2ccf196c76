"""Self-attention over sequences of different length, packed one after another.

Shape shorthand: T tokens of all sequences, C channels, H heads, D channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attend(mixed: Tensor, lengths: list[int], dropout: float = 0.0, scale: float | None = None) -> Tensor:
    """Attention within each sequence; weights are never stored.

    On the CPU each sequence runs alone (padding only costs there), on a GPU sequences are padded to the longest of
    their chunk. Sequences of one length run as one batch everywhere.

    Args:
        mixed: (T, 3, H, D) queries, keys and values; lengths: of the sequences, in order.
        scale: of the logits; 1 / sqrt(D) when None.

    Returns:
        (T, H, D).
    """
    if len(set(lengths)) == 1:
        return _attend_equal(mixed, len(lengths), dropout, scale)
    if mixed.is_cuda:
        return attend_padded(mixed, lengths, dropout, scale)
    return torch.cat([_attend_equal(part, 1, dropout, scale) for part in mixed.split(lengths)])


def _attend_equal(mixed: Tensor, sequences: int, dropout: float, scale: float | None) -> Tensor:
    queries, keys, values = mixed.unflatten(0, (sequences, -1)).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, scale=scale)
    return attended.transpose(1, 2).flatten(0, 1)


def attend_padded(mixed: Tensor, lengths: list[int], dropout: float = 0.0, scale: float | None = None) -> Tensor:
    """The same, as one batch padded to the longest sequence."""
    padded = nn.utils.rnn.pad_sequence(list(mixed.split(lengths)), batch_first=True)
    limit = torch.tensor(lengths, device=mixed.device)
    valid = torch.arange(padded.shape[1], device=mixed.device) < limit[:, None]
    queries, keys, values = padded.permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=valid[:, None, None, :], dropout_p=dropout, scale=scale
    )
    return attended.transpose(1, 2)[valid]


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
        split = 2 * tokens.shape[1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        placed = tokens if positions is None else tokens + positions
        queries_keys = F.linear(placed, weight[:split], bias[:split])
        values = F.linear(tokens, weight[split:], bias[split:])
        mixed = torch.cat([queries_keys, values], dim=1).unflatten(1, (3, self.heads, -1))
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(mixed, lengths, dropout).flatten(1))
