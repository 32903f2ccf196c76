"""Sequences of quadtree nodes: from places of RoIs to their refined probabilities.

Shape shorthand: R RoIs, C channels, S0 = 28 the coarse side, L quadtree levels, Q nodes of a level.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.mask_head.quadtree import Nodes, sequence_order
from model.mask_head.refiner import NodeCues, SequenceRefiner, join_cues
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
        separate = [self._refine_sequences(references, rois, [n], [c]) for n, c in zip(levels, cues, strict=True)]
        return torch.cat([r for r, _ in separate]), [values[0] for _, values in separate]

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
        dealt = [_deal(nodes, parts) for nodes in levels]
        everyone = torch.arange(len(owner), device=coarse.device)
        known = None if coarse_features is None else coarse_features[owner]
        return self(pyramid.select(owner), coarse[owner], dealt, everyone, known)[1]

    def _refine_sequences(
        self, references: NodeCues, rois: Tensor, levels: list[Nodes], cues: list[NodeCues]
    ) -> tuple[Tensor, list[Tensor]]:
        """One sequence an RoI: its reference points, then its nodes level by level."""
        owners = [rois.repeat_interleave(len(references.coarse) // max(len(rois), 1)), *(n.roi for n in levels)]
        order = sequence_order(owners)
        counts = torch.unique_consecutive(torch.cat(owners)[order], return_counts=True)[1]
        packed = self.refiner(join_cues([references, *cues]).reordered(order), counts.tolist())
        refined = torch.empty_like(packed).index_copy(0, order, packed)
        root_values, *by_level = refined.split([len(part) for part in owners])
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
        known = None
        if coarse_features is not None:
            known = F.adaptive_avg_pool2d(coarse_features[rois], side).permute(0, 2, 3, 1).flatten(0, 2)
        return NodeCues(
            feature.permute(0, 2, 3, 1).flatten(0, 2),
            resize_masks(coarse[rois], side).flatten(),
            self.refiner.positions(side).flatten(0, 1).repeat(len(rois), 1),
            context,
            known,
        )

    def _cues(
        self, pyramid: RoIPyramid, coarse: Tensor, levels: list[Nodes], coarse_features: Tensor | None = None
    ) -> list[NodeCues]:
        features = pyramid.at(levels, self.sizes)
        contexts: list[Tensor | None] = [None] * len(levels)
        if "context" in self.refiner.node_encoder.cues:
            around = pyramid.at([nodes.neighbourhood() for nodes in levels], self.sizes)
            contexts = [part.unflatten(0, (-1, 9)).flatten(1) for part in around]
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


def _of_cells(features: Tensor, nodes: Nodes, size: int) -> Tensor:
    """What a (R, C, S0, S0) grid holds in the cells that contain nodes of a size x size grid, (Q, C)."""
    side = features.shape[-1]
    rows = features.permute(0, 2, 3, 1)
    return rows[nodes.roi, nodes.y * side // size, nodes.x * side // size]


def _deal(nodes: Nodes, parts: Tensor) -> Nodes:
    """Deal the nodes of each RoI in turn to its ``parts`` (R,) sequences, numbered through."""
    counts = nodes.counts(len(parts))
    rank = torch.arange(len(nodes), device=parts.device) - (counts.cumsum(0) - counts)[nodes.roi]
    first = parts.cumsum(0) - parts
    return Nodes(first[nodes.roi] + rank % parts[nodes.roi], nodes.y, nodes.x)


def _neighbourhoods(feature: Tensor) -> Tensor:
    """3x3 neighbourhoods of a dense (R, C, S, S) grid, zero outside it: (R * S * S, 9 * C), place by place."""
    patches = F.unfold(feature, 3, padding=1).unflatten(1, (-1, 9))
    return patches.permute(0, 3, 2, 1).flatten(0, 1).flatten(1)


def resize_masks(probabilities: Tensor, size: int) -> Tensor:
    """(R, S, S) to (R, size, size), bilinear; the same tensor where the size fits already."""
    if probabilities.shape[-1] == size:
        return probabilities
    return F.interpolate(probabilities[:, None], (size, size), mode="bilinear")[:, 0]
