"""The refinement: from nodes and reference points of RoIs, read as sequences, to refined probabilities.

`QuadtreeRefinement` gathers the cues of places; `SequenceRefiner` is the network that reads them: node encoder,
sequence encoder, pixel decoder (section 3.3; released layout).

Shape shorthand: R RoIs, C channels, S0 = 28 the coarse side, L quadtree levels, Q nodes of a level, S side of a grid,
T tokens of all sequences packed one after another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.mask_head.encoder_layers import build_layers, in_bf16_on_cpu
from model.mask_head.quadtree import Nodes
from model.mask_head.roi_features import RoIPyramid


class QuadtreeRefinement:
    """Gathers the cues of nodes and reference points, and has the refiner read them as sequences.

    Args:
        refiner: the network; sizes: of the quadtree levels; coarse_size: side of the reference points' grid.
        reference_points: every sequence starts with the coarse feature's points.
        joint_levels: all levels of an RoI form one sequence, else each level its own (Table 8).
    """

    def __init__(
        self,
        refiner: SequenceRefiner,
        sizes: list[int],
        coarse_size: int,
        *,
        reference_points: bool = True,
        joint_levels: bool = True,
    ) -> None:
        self.refiner = refiner
        self.sizes = sizes
        self.coarse_size = coarse_size
        self.reference_points = reference_points
        self.joint_levels = joint_levels

    @property
    def needs_coarse_features(self) -> bool:
        """Whether the features that the coarse mask was predicted from are a cue."""
        return "coarse_feature" in self.refiner.node_encoder.cues

    def __call__(
        self,
        pyramid: RoIPyramid,
        coarse: Tensor,
        levels: list[Nodes],
        rois: Tensor,
        coarse_features: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Refined probabilities of the reference points and of every level's nodes.

        Args:
            pyramid: of R RoIs; coarse: (R, S0, S0) coarse probabilities; levels: nodes that refer to the R RoIs.
            rois: int64 (R',) the RoIs that have a sequence; the nodes belong to these only.
            coarse_features: (R, C, S0, S0) what the coarse mask was predicted from, where that is a cue.

        Returns:
            references (R' * 14 * 14,), none where they are switched off, and L tensors (Q,).
        """
        cues = self._cues(pyramid, coarse, levels, coarse_features)
        references = self._reference_cues(pyramid, coarse, rois, coarse_features)
        if self.joint_levels:
            return self._refine_sequences(references, rois, levels, cues)
        by_level = [
            self._refine_sequences(references, rois, [nodes], [node_cues])
            for nodes, node_cues in zip(levels, cues, strict=True)
        ]
        return torch.cat([root_values for root_values, _ in by_level]), [values[0] for _, values in by_level]

    def in_parts(
        self,
        pyramid: RoIPyramid,
        coarse: Tensor,
        levels: list[Nodes],
        most_nodes: int,
        coarse_features: Tensor | None = None,
    ) -> list[Tensor]:
        """The nodes' refined probabilities, L tensors (Q,), from sequences of about ``most_nodes`` nodes (0: any).

        An RoI with more nodes is read as several sequences, each with its reference points and every n-th node, so
        each spans the whole instance as a sample drawn in training does. What else is in the batch changes nothing.
        """
        rois = torch.arange(len(coarse), device=coarse.device)
        if not most_nodes:
            return self(pyramid, coarse, levels, rois, coarse_features)[1]
        counts = torch.stack([nodes.counts(len(coarse)) for nodes in levels]).sum(0)
        parts = (counts + most_nodes - 1).div(most_nodes, rounding_mode="floor").clamp(min=1)
        owner = rois.repeat_interleave(parts)
        part_levels = [_deal(nodes, parts) for nodes in levels]
        sequences = torch.arange(len(owner), device=coarse.device)
        features = None if coarse_features is None else coarse_features[owner]
        return self(pyramid.select(owner), coarse[owner], part_levels, sequences, features)[1]

    def _refine_sequences(
        self, references: NodeCues, rois: Tensor, levels: list[Nodes], cues: list[NodeCues]
    ) -> tuple[Tensor, list[Tensor]]:
        """One sequence an RoI: its reference points, then its nodes level by level."""
        owners = [rois.repeat_interleave(len(references.coarse) // max(len(rois), 1)), *(n.roi for n in levels)]
        order = sequence_order(owners)
        counts = torch.unique_consecutive(torch.cat(owners)[order], return_counts=True)[1]
        values = self.refiner(join_cues([references, *cues]).reordered(order), counts.tolist())
        refined = torch.empty_like(values).index_copy(0, order, values)
        root_values, *by_level = refined.split([len(owner) for owner in owners])
        return root_values, by_level

    def _reference_cues(
        self, pyramid: RoIPyramid, coarse: Tensor, rois: Tensor, coarse_features: Tensor | None = None
    ) -> NodeCues:
        """The coarse RoI feature's places as positive and negative references."""
        if not self.reference_points:
            rois = rois[:0]
        side = self.coarse_size
        feature = pyramid.coarse[rois]
        context = _neighbourhoods(feature) if "context" in self.refiner.node_encoder.cues else None
        coarse_cues = None
        if coarse_features is not None:
            coarse_cues = F.adaptive_avg_pool2d(coarse_features[rois], side).permute(0, 2, 3, 1).flatten(0, 2)
        return NodeCues(
            feature.permute(0, 2, 3, 1).flatten(0, 2),
            resize_masks(coarse[rois], side).flatten(),
            self.refiner.positions(side).flatten(0, 1).repeat(len(rois), 1),
            context,
            coarse_cues,
        )

    def _cues(
        self, pyramid: RoIPyramid, coarse: Tensor, levels: list[Nodes], coarse_features: Tensor | None = None
    ) -> list[NodeCues]:
        contexts: list[Tensor | None] = [None] * len(levels)
        if "context" in self.refiner.node_encoder.cues:
            neighbourhoods = pyramid.at([nodes.neighbourhood() for nodes in levels], self.sizes)
            neighbourhoods = [neighbourhood.unflatten(0, (-1, 9)) for neighbourhood in neighbourhoods]
            features = [neighbourhood[:, 4] for neighbourhood in neighbourhoods]
            contexts = [neighbourhood.flatten(1) for neighbourhood in neighbourhoods]
        else:
            features = pyramid.at(levels, self.sizes)
        return [
            NodeCues(
                feature,
                nodes.of(resize_masks(coarse, size)),
                self.refiner.positions(size)[nodes.y, nodes.x],
                context,
                None if coarse_features is None else _of_cells(coarse_features, nodes, size),
            )
            for feature, nodes, size, context in zip(features, levels, self.sizes, contexts, strict=True)
        ]


def sequence_order(roi_of_part: list[Tensor]) -> Tensor:
    """Permutation that turns parts (reference points, then each level) into one packed run of tokens an RoI.

    Within an RoI the parts keep their order and the places theirs, so sequences equal the released code's.
    """
    return torch.argsort(torch.cat(roi_of_part), stable=True)


def _of_cells(features: Tensor, nodes: Nodes, size: int) -> Tensor:
    """What a (R, C, S0, S0) grid holds in the cells that contain nodes of a size x size grid, (Q, C)."""
    side = features.shape[-1]
    rows = features.permute(0, 2, 3, 1)
    return rows[nodes.roi, nodes.y * side // size, nodes.x * side // size]


def _deal(nodes: Nodes, parts: Tensor) -> Nodes:
    """Deal the nodes of each RoI in turn to its ``parts`` (R,) sequences, numbered through."""
    counts = nodes.counts(len(parts))
    rank = torch.arange(len(nodes), device=parts.device) - (counts.cumsum(0) - counts)[nodes.roi]
    first_sequences = parts.cumsum(0) - parts
    return Nodes(first_sequences[nodes.roi] + rank % parts[nodes.roi], nodes.y, nodes.x)


def _neighbourhoods(feature: Tensor) -> Tensor:
    """3x3 neighbourhoods of a dense (R, C, S, S) grid, zero outside it: (R * S * S, 9 * C), place by place."""
    patches = F.unfold(feature, 3, padding=1).unflatten(1, (-1, 9))
    return patches.permute(0, 3, 2, 1).flatten(0, 1).flatten(1)


def resize_masks(probabilities: Tensor, size: int) -> Tensor:
    """Resize masks (R, S, S) to (R, size, size), bilinear; the same tensor where the size fits already."""
    if probabilities.shape[-1] == size:
        return probabilities
    return F.interpolate(probabilities[:, None], (size, size), mode="bilinear")[:, 0]


# DETR's sine encoding: temperature, and the full turn that a grid's side spans.
TEMPERATURE = 10000.0
TURN = 2 * math.pi

# What the pixel decoder predicts at a place: its mask probability (the paper), or a correction of the coarse logit.
DECODERS = ("direct", "residual")
# A residual decoder clamps coarse logits to this: beyond it there would be no gradient left to correct them.
SUREST_LOGIT = 4.0

# Where the position encoding enters: into queries and keys of every layer (released), or once into the tokens (paper).
POSITION_PLACES = ("layers", "input")


def position_table(size: int, channels: int) -> Tensor:
    """Sine position encoding of a size x size grid, (size, size, channels); y in the first half of the channels."""
    if channels % 4:
        raise ValueError(f"position encoding needs channels divisible by 4, got {channels}")
    half = channels // 2
    steps = torch.arange(1, size + 1, dtype=torch.float32) / (size + 1e-6) * TURN
    exponent = 2 * torch.div(torch.arange(half), 2, rounding_mode="floor") / half
    angle = steps[:, None] / TEMPERATURE**exponent
    encoding = torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)
    rows = encoding[:, None, :].expand(size, size, half)
    columns = encoding[None, :, :].expand(size, size, half)
    return torch.cat([rows, columns], dim=2)


class SequenceRefiner(nn.Module):
    """Cues of places to refined mask probabilities.

    Args:
        sizes: sides of the grids whose places it refines.
        kind: of the layers, see encoder_layers.KINDS; ``layers`` of them.
        position_place: one of ``POSITION_PLACES``; decoder: one of ``DECODERS``. A residual one begins with the
            coarse mask, so that a short training cannot make it worse; not in the paper.
        max_tokens: encoded in one go in inference; bounds memory and changes no result.
    """

    def __init__(
        self,
        channels: int,
        *,
        sizes: tuple[int, ...] = (14, 28, 56, 112),
        layers: int = 3,
        heads: int = 4,
        ffn_dim: int = 2048,
        dropout: float = 0.1,
        kind: str = "transformer",
        cues: tuple[str, ...] = ("feature", "coarse", "position"),
        position_place: str = "layers",
        decoder: str = "direct",
        max_tokens: int = 16384,
    ) -> None:
        super().__init__()
        for key, value, choices in (("POSITION", position_place, POSITION_PLACES), ("DECODER", decoder, DECODERS)):
            if value not in choices:
                raise ValueError(f"MODEL.TRANSFINER.{key} must be one of {choices}, got {value!r}")
        self.max_tokens = max_tokens
        self.decoder = decoder
        self.position_place = position_place if "position" in cues else None
        self.node_encoder = NodeEncoder(channels, cues)
        self.layers = build_layers(kind, channels, layers, heads, ffn_dim, dropout)
        for name, layer in self.node_encoder.layers.items():
            self.add_module(name, layer)
        self.conv_r1 = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 1, 1), nn.Sigmoid()
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        if decoder == "residual":
            for parameter in self.conv_r1[2].parameters():
                nn.init.zeros_(parameter)
        for size in sorted(set(sizes)):
            self.register_buffer(f"positions_{size}", position_table(size, channels), persistent=False)

    def forward(self, cues: NodeCues, lengths: list[int]) -> Tensor:
        """Refined probabilities (T,); ``lengths``: tokens of each sequence, in order."""
        tokens = self.node_encoder(cues)
        positions = cues.position
        if self.position_place == "input":
            tokens = tokens + positions
        layer_positions = positions if self.position_place == "layers" else None
        return torch.cat(
            [
                self.decode(
                    self.encode(tokens[rows], None if layer_positions is None else layer_positions[rows], chunk),
                    cues.coarse[rows],
                )
                for rows, chunk in self._chunks(lengths)
            ]
        )

    def positions(self, size: int) -> Tensor:
        """Position encoding of a grid, (size, size, C)."""
        return getattr(self, f"positions_{size}")

    def encode(self, tokens: Tensor, positions: Tensor | None, lengths: list[int]) -> Tensor:
        """Sequence encoder, (T, C) to (T, C)."""
        for layer in self.layers:
            tokens = layer(tokens, positions, lengths)
        return tokens

    def decode(self, tokens: Tensor, coarse: Tensor) -> Tensor:
        """Pixel decoder, a two-layer MLP (stored as 1x1 convolutions): (T, C) to probabilities (T,).

        ``coarse`` (T,) are the coarse mask's probabilities there; only a residual decoder asks for them.
        """
        if in_bf16_on_cpu(tokens):
            first_layer, second_layer = (layer for layer in self.conv_r1 if isinstance(layer, nn.Conv2d))
            hidden = F.linear(tokens, first_layer.weight.flatten(1), first_layer.bias).relu_()
            logits = F.linear(hidden, second_layer.weight.flatten(1), second_layer.bias)[:, 0].float()
        else:
            hidden = tokens[:, :, None, None]
            for layer in list(self.conv_r1)[:-1]:  # all but the sigmoid
                hidden = layer(hidden)
            logits = hidden[:, 0, 0, 0]
        if self.decoder == "residual":
            logits = logits + coarse.to(logits.dtype).logit(1e-4).clamp(-SUREST_LOGIT, SUREST_LOGIT)
        return logits.sigmoid()

    def _chunks(self, lengths: list[int]) -> Iterator[tuple[slice, list[int]]]:
        """Runs of whole sequences of at most ``max_tokens`` tokens (one may exceed it). A single run in training."""
        start, chunk = 0, list[int]()
        for length in lengths:
            if chunk and sum(chunk) + length > self.max_tokens and not self.training:
                yield slice(start, start + sum(chunk)), chunk
                start, chunk = start + sum(chunk), []
            chunk.append(length)
        yield slice(start, start + sum(chunk)), chunk


CUES = ("feature", "coarse", "position", "context", "coarse_feature")


@dataclass(frozen=True)
class NodeCues:
    """The cues of T places.

    Attributes:
        feature: (T, C) FPN feature at the place and its level.
        coarse: (T,) coarse mask probability there.
        position: (T, C) encoding of the place relative to the RoI.
        context: (T, 9 * C) features of the 3x3 neighbourhood, or None where that cue is off.
        coarse_feature: (T, C) what the coarse mask was predicted from there, or None where that cue is off.
    """

    feature: Tensor
    coarse: Tensor
    position: Tensor
    context: Tensor | None = None
    coarse_feature: Tensor | None = None

    def reordered(self, order: Tensor) -> NodeCues:
        """The cues of the places at ``order``."""
        optional = [None if cue is None else cue[order] for cue in (self.context, self.coarse_feature)]
        return NodeCues(self.feature[order], self.coarse[order], self.position[order], *optional)


def join_cues(parts: list[NodeCues]) -> NodeCues:
    """Cues of several runs of places, one after another."""
    optional = [
        [cue for cue in cues if cue is not None]
        for cues in ([part.context for part in parts], [part.coarse_feature for part in parts])
    ]
    return NodeCues(
        torch.cat([part.feature for part in parts]),
        torch.cat([part.coarse for part in parts]),
        torch.cat([part.position for part in parts]),
        *(torch.cat(cues) if cues else None for cues in optional),
    )


class NodeEncoder:
    """Fuses the cues to one token of C channels a place.

    The released code fuses feature and coarse probability and adds the position in every encoder layer; the paper
    adds it here, once, and has the context as a fourth cue. A fifth, not in the paper, is what the coarse head knows of
    the place (PointRend's point head has its prediction alone). Not a module itself: the refiner registers ``layers``.

    Args:
        cues: which of ``CUES`` to use; at least one besides the position.
    """

    def __init__(self, channels: int, cues: tuple[str, ...]) -> None:
        unknown_cues = set(cues) - set(CUES)
        if unknown_cues or not set(cues) - {"position"}:
            raise ValueError(f"CUES must be among {CUES}, one of them not the position; got {cues}")
        self.cues = cues
        widths = {"feature": channels, "coarse": 1, "context": channels, "coarse_feature": channels}
        width = sum(widths[cue] for cue in cues if cue != "position")
        self.layers: dict[str, nn.Module] = {"conv_fuse": nn.Conv2d(width, channels, 1)}
        if "context" in cues:
            self.layers["context"] = nn.Linear(9 * channels, channels)

    def __call__(self, cues: NodeCues) -> Tensor:
        """Tokens (T, C), without position.

        ``conv_fuse`` is a linear map that checkpoints hold as a 1x1 convolution.
        """
        parts = []
        if "feature" in self.cues:
            parts.append(cues.feature)
        if "coarse" in self.cues:
            parts.append(cues.coarse[:, None].to(cues.feature.dtype))
        if "context" in self.cues:
            parts.append(self.layers["context"](cues.context))
        if "coarse_feature" in self.cues:
            assert cues.coarse_feature is not None
            parts.append(cues.coarse_feature)
        fuse = self.layers["conv_fuse"]
        assert isinstance(fuse, nn.Conv2d)
        return F.linear(torch.cat(parts, dim=1), fuse.weight.flatten(1), fuse.bias)
