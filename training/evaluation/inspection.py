"""Looking into a network while it predicts: which nodes it refined, and what they attended to.

Shape shorthand: R RoIs, L quadtree levels, T tokens of a sequence, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.mask_head.encoder_layers import SelfAttention
from model.mask_head.head import CoarseOutput, TransfinerMaskHead
from model.mask_head.quadtree import Nodes


def mask_head_of(network: nn.Module) -> TransfinerMaskHead | None:
    """The network's Transfiner mask head; None where it has another one."""
    return next((module for module in network.modules() if isinstance(module, TransfinerMaskHead)), None)


@dataclass
class Refined:
    """Nodes and values that the mask head refined for the RoIs of one image.

    Attributes:
        output: of the convolutional part, R RoIs; levels: the nodes it refined.
        values: refined probabilities of the nodes, L tensors.
    """

    output: CoarseOutput
    levels: list[Nodes]
    values: list[Tensor] = field(default_factory=list)


@contextmanager
def recorded_refinement(network: nn.Module) -> Iterator[list[Refined]]:
    """Collects a :class:`Refined` for each image that is predicted meanwhile.

    Raises:
        ValueError: the network has no Transfiner mask head.
    """
    head = mask_head_of(network)
    if head is None:
        raise ValueError(f"{type(network).__name__} has no Transfiner mask head: nothing is refined in it")
    records: list[Refined] = []
    find_nodes, in_parts = head.find_nodes, head.refine.in_parts

    def finding(output: CoarseOutput) -> list[Nodes]:
        levels = find_nodes(output)
        records.append(Refined(output, levels))
        return levels

    def refining(*given: Any, **named: Any) -> list[Tensor]:
        values = in_parts(*given, **named)
        records[-1].values = values
        return values

    head.find_nodes, head.refine.in_parts = finding, refining  # type: ignore[method-assign]
    try:
        yield records
    finally:
        head.find_nodes, head.refine.in_parts = find_nodes, in_parts  # type: ignore[method-assign]


@dataclass(frozen=True)
class LayerInput:
    """Input of one attention layer: (T, C) tokens and positions of all sequences, and their lengths."""

    tokens: Tensor
    positions: Tensor | None
    lengths: list[int]


@contextmanager
def recorded_attention(network: nn.Module, layer: int = -1) -> Iterator[tuple[SelfAttention, list[LayerInput]]]:
    """Collects the inputs of an attention layer (the last by default); weights follow by :func:`attention_rows`.

    Raises:
        ValueError: the network's refiner has no attention layers.
    """
    head = mask_head_of(network)
    attentions = [part for part in head.modules() if isinstance(part, SelfAttention)] if head else []
    if not attentions:
        raise ValueError("this network's refinement has no attention layers")
    chosen, inputs = attentions[layer], list[LayerInput]()

    def note(_: nn.Module, given: tuple[Any, ...]) -> None:
        inputs.append(LayerInput(*given))

    hook = chosen.register_forward_pre_hook(note)
    try:
        yield chosen, inputs
    finally:
        hook.remove()


def attention_rows(attention: SelfAttention, given: LayerInput, sequence: int, rows: Tensor) -> Tensor:
    """Attention weights of some tokens of a sequence over all its tokens, mean over heads: (rows, T).

    Only these rows are computed: the network itself never stores weights.
    """
    start = sum(given.lengths[:sequence])
    span = slice(start, start + given.lengths[sequence])
    tokens = given.tokens[span]
    placed = tokens if given.positions is None else tokens + given.positions[span]
    channels = tokens.shape[1]
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    queries = F.linear(placed[rows], weight[:channels], bias[:channels])
    keys = F.linear(placed, weight[channels : 2 * channels], bias[channels : 2 * channels])
    split = (attention.heads, -1)
    logits = torch.einsum("rhd,thd->hrt", queries.unflatten(1, split), keys.unflatten(1, split))
    return (logits / (channels // attention.heads) ** 0.5).softmax(-1).mean(0)
