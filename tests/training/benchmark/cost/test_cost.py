"""Counted cost against formulas worked out by hand, and how memory grows; nothing here measures time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from model.config import get_config
from training.benchmark.cost.measures import count_flops, peak_bytes, refinement_cost, spread_nodes

NODES = (500, 1000, 2000, 4000, 8000)
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


def test_closed_form_by_hand() -> None:
    # d = 2, ff = 3, N = 5, one layer: 5 * (4*4 + 2*2*3) + 2*25*2 = 140 + 100 = 240 MAC.
    assert transformer_flops([5], channels=2, ffn_dim=3, layers=1) == 480
    assert transformer_flops([5, 5], channels=2, ffn_dim=3, layers=2) == 4 * 480
    # The measured figure of an instance with 4,000 nodes.
    assert refinement_flops([4000]) / 1e9 == pytest.approx(81.7, abs=0.1)


@pytest.mark.parametrize("preset", ["released", "paper"])
@pytest.mark.parametrize("lengths", [[560], [4000], [300, 1200, 90]])
def test_counted_operations_are_the_closed_forms(preset: str, lengths: list[int]) -> None:
    cfg = get_config(preset)
    node = cfg.MODEL.TRANSFINER
    by_formula = refinement_flops(lengths, ffn_dim=node.ENCODER_FFN_DIM, layers=node.ENCODER_LAYERS, cues=node.CUES)
    assert refinement_cost(cfg, lengths)["flops"] == pytest.approx(by_formula, rel=0.01)


def test_torchs_own_encoder_counts_the_same() -> None:
    """Its fast path would count as nothing; with it off, both of us agree with the formula."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    tokens = torch.zeros(1, 50, 64)
    with torch.no_grad():
        flops = count_flops(lambda: encoder(tokens))
    assert flops == pytest.approx(transformer_flops([50], channels=64, ffn_dim=128, layers=2), rel=0.01)
    assert torch.backends.mha.get_fastpath_enabled()


def growth(peaks: list[int]) -> list[float]:
    """Bytes a node between neighbouring measurements."""
    steps = zip(NODES, NODES[1:], peaks, peaks[1:], strict=False)
    return [(more - less) / (high - low) for low, high, less, more in steps]


@pytest.mark.parametrize("preset", ["released", "paper"])
def test_peak_memory_grows_linearly_with_the_nodes_of_an_instance(preset: str) -> None:
    """Attention weights are never stored: every further node costs the same number of bytes."""
    rates = growth([refinement_cost(get_config(preset), [count])["peak_bytes"] for count in NODES])
    assert min(rates) > 1000  # something is counted at all
    assert max(rates) == pytest.approx(min(rates), rel=0.01)


def test_peak_memory_would_show_stored_attention_weights() -> None:
    """The same measurement on attention that stores its weights grows with the square: the test can fail."""

    def peak(count: int) -> int:
        with FakeTensorMode(), torch.no_grad():
            attention = nn.MultiheadAttention(256, 4, batch_first=True)
            tokens = torch.zeros(1, count, 256)
            return peak_bytes(lambda: attention(tokens, tokens, tokens, need_weights=True), attention)

    rates = growth([peak(count) for count in NODES])
    assert rates[-1] > 5 * rates[0]


def test_peak_memory_of_inference_is_bounded_by_the_chunk() -> None:
    """Instances are encoded in runs of MAX_TOKENS: a further run adds only its inputs and outputs."""
    cfg = get_config("released")
    cfg.MODEL.TRANSFINER.MAX_TOKENS = 4000
    single, two, three = (refinement_cost(cfg, [1000] * count)["peak_bytes"] for count in (4, 8, 12))
    assert three - two == pytest.approx(two - single, rel=0.02)
    whole = cfg.clone()
    whole.MODEL.TRANSFINER.MAX_TOKENS = 1_000_000
    assert three < refinement_cost(whole, [1000] * 12)["peak_bytes"]


@pytest.mark.parametrize("count", [1, 7, 560, 4000, 16464])
def test_spread_nodes_are_as_many_as_asked_and_all_different(count: int) -> None:
    levels = spread_nodes(2, [28, 56, 112], count, torch.device("cpu"))
    assert sum(len(nodes) for nodes in levels) == 2 * count
    for nodes in levels:
        assert len({*zip(nodes.roi.tolist(), nodes.y.tolist(), nodes.x.tolist(), strict=True)}) == len(nodes)


def test_more_nodes_than_places_are_refused() -> None:
    with pytest.raises(ValueError, match=r"20 nodes an instance asked for, levels \[4\] have 16 places"):
        spread_nodes(1, [4], 20, torch.device("cpu"))
