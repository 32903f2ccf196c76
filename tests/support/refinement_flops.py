"""Operations of the refinement by formula: what the counted ones are checked against.

N tokens of a sequence (its reference points included), d channels, ff width of the feed-forward part.
"""

from __future__ import annotations

from collections.abc import Sequence

MULTIPLY_ADD = 2  # operations


def transformer_flops(lengths: Sequence[int], *, channels: int = 256, ffn_dim: int = 2048, layers: int = 3) -> int:
    """Operations (2 x MAC) of the sequence encoder: L * (N * (4 d^2 + 2 d ff) + 2 N^2 d) MACs a sequence.

    The four projections and the two feed-forward maps grow with N, the two products of attention with N squared.
    """
    macs = 0
    for length in lengths:
        per_token = 4 * channels**2 + 2 * channels * ffn_dim
        macs += layers * (length * per_token + 2 * length**2 * channels)
    return MULTIPLY_ADD * macs


def node_flops(tokens: int, *, channels: int = 256, cues: Sequence[str] = ("feature", "coarse")) -> int:
    """Operations of the node encoder (fuse, and the compression of a 3x3 context) and of the pixel decoder."""
    widths = {"feature": channels, "coarse": 1, "context": channels}
    fused = sum(widths[cue] for cue in cues if cue in widths)
    macs = fused * channels + channels * channels + channels
    if "context" in cues:
        macs += 9 * channels * channels
    return MULTIPLY_ADD * tokens * macs


def refinement_flops(
    lengths: Sequence[int],
    *,
    channels: int = 256,
    ffn_dim: int = 2048,
    layers: int = 3,
    cues: Sequence[str] = ("feature", "coarse"),
) -> int:
    """Node encoder, sequence encoder and pixel decoder together, for the transformer refiner."""
    encoder = transformer_flops(lengths, channels=channels, ffn_dim=ffn_dim, layers=layers)
    return encoder + node_flops(sum(lengths), channels=channels, cues=cues)
