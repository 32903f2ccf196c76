"""Boxes, masks by depth, nodes and attention of one image, ready to be drawn.

Shape shorthand: R instances, L quadtree levels, S side of a level, T tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from torch import Tensor, nn

from model.mask_head.encoder_layers import SelfAttention
from model.mask_head.quadtree import propagate
from training.datasets import Sample
from training.datasets.loader import to_network_input
from training.evaluation.inspection import (
    LayerInput,
    Refined,
    attention_rows,
    mask_head_of,
    recorded_attention,
    recorded_refinement,
)

# One sequence an instance, all of its nodes: what attention is drawn from.
WHOLE_SEQUENCES = [
    "MODEL.TRANSFINER.KEEP_COARSE",
    True,
    "MODEL.TRANSFINER.TEST_SEQUENCE_NODES",
    0,
    "MODEL.TRANSFINER.TEST_NODE_BUDGET",
    0,
    "MODEL.TRANSFINER.MAX_TOKENS",
    1_000_000_000,
]


@dataclass(frozen=True)
class Observation:
    """One image's instances, best score first as the network gives them.

    Attributes:
        image: RGB uint8 H x W x 3. boxes_xyxy: (R, 4) in its pixels.
        classes, scores: (R,). refined: nodes and values. sizes: of the levels.
        attention: the last attention layer and what it was given; None for refiners without.
        references: tokens of a sequence before its nodes.
    """

    image: np.ndarray
    boxes_xyxy: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    refined: Refined
    sizes: list[int]
    propagation: str
    attention: tuple[SelfAttention, LayerInput] | None
    references: int

    def __len__(self) -> int:
        return len(self.refined.output.logits)

    def masks_by_depth(self) -> list[Tensor]:
        """Probabilities of the coarse masks, then of the masks after each further level: L + 1 of (R, S, S)."""
        coarse = self.refined.output.logits.float().sigmoid()
        levels, values = self.refined.levels, [value.float() for value in self.refined.values]
        how = "nearest" if self.propagation == "leaves" else self.propagation
        masks = [coarse]
        for depth in range(1, len(self.sizes) + 1):
            masks.append(propagate(coarse, levels[:depth], values[:depth], self.sizes[:depth], how))
        return masks

    def nodes_of(self, instance: int) -> list[np.ndarray]:
        """(Q, 2) rows and columns of an instance's nodes on each level."""
        places = []
        for level in self.refined.levels:
            mine = level.roi == instance
            places.append(torch.stack([level.y[mine], level.x[mine]], dim=1).cpu().numpy())
        return places

    def attention_of(self, instance: int, nodes: list[int]) -> list[np.ndarray]:
        """Weights of some nodes (counted through all levels) over all nodes: (len(nodes), Q) a level.

        Raises:
            ValueError: the refinement has no attention.
        """
        if self.attention is None:
            raise ValueError("this network's refinement has no attention layers to draw")
        layer, given = self.attention
        rows = torch.tensor(nodes, device=given.tokens.device) + self.references
        with torch.inference_mode():
            weights = attention_rows(layer, given, instance, rows)[:, self.references :]
        counts = [len(places) for places in self.nodes_of(instance)]
        return [part.cpu().numpy() for part in weights.split(counts, dim=1)]


@torch.inference_mode()
def observe(network: nn.Module, cfg: CfgNode, image: np.ndarray) -> Observation:
    """Predict an RGB image; build the network with ``WHOLE_SEQUENCES`` for the attention to be whole.

    Raises:
        ValueError: the network refines nothing (another mask head, or depth 0).
    """
    head = mask_head_of(network)
    if head is None or not head.sizes:
        raise ValueError("this network has no quadtree: there is nothing to draw by depth")
    empty = np.zeros(0, np.int64)
    sample = Sample(image, np.zeros((0, *image.shape[:2]), bool), empty, empty.astype(bool), 0)
    resize = [ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
    record: dict[str, Any] = to_network_input(sample, resize, cfg.INPUT.FORMAT)
    attends = head.settings.joint_levels and any(isinstance(part, SelfAttention) for part in head.modules())
    given: list[LayerInput] = []
    layer: SelfAttention | None = None
    with recorded_refinement(network) as records:
        if attends:
            with recorded_attention(network) as (layer, given):
                (instances,) = network.inference([record], do_postprocess=False)  # type: ignore[operator]
        else:
            (instances,) = network.inference([record], do_postprocess=False)  # type: ignore[operator]
    height, width = instances.image_size
    scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
    references = head.coarse_size**2 if head.settings.reference_points else 0
    if not records:
        raise ValueError("the network found no instance on this image")
    return Observation(
        image,
        instances.pred_boxes.tensor.cpu().numpy() * scale,
        instances.pred_classes.cpu().numpy(),
        instances.scores.cpu().numpy(),
        records[0],
        head.sizes,
        head.settings.propagation,
        (layer, given[0]) if layer is not None and given else None,
        references,
    )
