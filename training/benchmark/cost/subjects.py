"""What is measured: networks with random weights, their inputs, and a chosen amount of work.

Shape shorthand: R RoIs, L quadtree levels, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Instances
from torch import nn

from model.config import override
from model.mask_head.head import CoarseOutput, TransfinerMaskHead
from model.mask_head.quadtree import Nodes
from model.mask_head.refiner import NodeCues, SequenceRefiner
from model.network import build_network
from training.engine.config import get_training_config
from training.evaluation.incoherence_analysis import mask_head_of

FPN_CHANNELS = 256


def open_network(config: str, *, device: str = "cpu", overrides: Sequence[object] = ()) -> tuple[nn.Module, CfgNode]:
    """A network of a configuration with random weights, in inference mode, and its configuration."""
    cfg = get_training_config(config)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = ""
    override(cfg, overrides)
    torch.manual_seed(0)
    return build_network(cfg).eval(), cfg


def refiner_of(cfg: CfgNode, channels: int = FPN_CHANNELS) -> SequenceRefiner:
    """The refinement network of a configuration, alone, with random weights."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = channels
    arguments = TransfinerMaskHead.from_config(cfg, ShapeSpec(channels=channels, height=14, width=14))
    refiner: SequenceRefiner = arguments["refiner"]
    return refiner.eval()


def refinement_call(
    refiner: SequenceRefiner, lengths: Sequence[int], *, channels: int = FPN_CHANNELS
) -> Callable[[], torch.Tensor]:
    """A call of the refiner on sequences of these lengths, with meaningless cues."""
    tokens = sum(lengths)
    context = "context" in refiner.node_encoder.cues
    cues = NodeCues(
        torch.zeros(tokens, channels),
        torch.zeros(tokens),
        torch.zeros(tokens, channels),
        torch.zeros(tokens, 9 * channels) if context else None,
    )
    return lambda: refiner(cues, list(lengths))


def force_detections(cfg: CfgNode, count: int) -> list[str]:
    """Overrides under which a network with any weights reports ``count`` instances an image."""
    keep: dict[str, Any] = {
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": -1.0,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 1.0,
        "MODEL.RPN.NMS_THRESH": 1.0,
        "MODEL.RPN.POST_NMS_TOPK_TEST": max(count, cfg.MODEL.RPN.POST_NMS_TOPK_TEST),
        "TEST.DETECTIONS_PER_IMAGE": count,
    }
    return [str(part) for pair in keep.items() for part in pair]


@contextmanager
def fixed_nodes(network: nn.Module, per_instance: int | None) -> Iterator[None]:
    """Meanwhile every instance has ``per_instance`` nodes (None: what the network finds), twice as many a finer level.

    Random weights find regions that no trained network would; a cost is comparable only at a stated node count.
    """
    head = mask_head_of(network)
    if head is None or per_instance is None or not head.sizes:
        yield
        return

    def find_nodes(output: CoarseOutput) -> list[Nodes]:
        return spread_nodes(len(output.logits), head.sizes, per_instance, output.logits.device)

    original = head.find_nodes
    head.find_nodes = find_nodes  # type: ignore[method-assign]
    try:
        yield
    finally:
        head.find_nodes = original  # type: ignore[method-assign]


def spread_nodes(rois: int, sizes: list[int], per_instance: int, device: torch.device) -> list[Nodes]:
    """``per_instance`` places of every RoI, evenly over each level's grid; the share of a level grows with its side.

    Raises:
        ValueError: more nodes than the levels have places.
    """
    places = sum(size * size for size in sizes)
    if per_instance > places:
        raise ValueError(f"{per_instance} nodes an instance asked for, levels {sizes} have {places} places")
    counts, left = [], per_instance
    for depth, size in enumerate(sizes):
        finer = sum(sizes[depth:])
        share = max(round(left * size / finer), left - sum(s * s for s in sizes[depth + 1 :]))
        counts.append(min(share, size * size))
        left -= counts[-1]
    levels = []
    for size, count in zip(sizes, counts, strict=True):
        place = torch.linspace(0, size * size - 1, count, device=device).long()
        roi = torch.arange(rois, device=device).repeat_interleave(count)
        levels.append(Nodes(roi, (place // size).repeat(rois), (place % size).repeat(rois)))
    return levels


def image_record(height: int, width: int) -> dict[str, Any]:
    """A preloaded image of noise as the network reads it."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    return {"image": torch.from_numpy(pixels), "height": height, "width": width}


def training_record(height: int, width: int, *, instances: int, classes: int) -> dict[str, Any]:
    """An image of noise with ellipses as ground truth."""
    rng = np.random.default_rng(0)
    record = image_record(height, width)
    rows, columns = np.mgrid[:height, :width]
    masks = []
    for _ in range(instances):
        size = np.array([height, width]) * rng.uniform(0.1, 0.25, 2)
        centre = rng.uniform(size, np.array([height, width]) - size)
        masks.append(((rows - centre[0]) / size[0]) ** 2 + ((columns - centre[1]) / size[1]) ** 2 < 1)
    truth = Instances((height, width))
    truth.gt_masks = BitMasks(torch.from_numpy(np.array(masks)))
    truth.gt_boxes = truth.gt_masks.get_bounding_boxes()
    truth.gt_classes = torch.from_numpy(rng.integers(0, classes, instances))
    return record | {"instances": truth}
