"""Mask heads beside one another in one run: ours, the authors' way of computing the same, and Mask R-CNN's.

The authors' way is our own head in a mode that works as theirs does: whole 28, 56 and 112 grids of RoI features of
which only the nodes are used, instances one after another, attention weights stored. Outputs are equal; only the way
differs.

Shape shorthand: R RoIs, C channels, T tokens, H heads, D channels a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

import model.mask_head.encoder_layers
from model.mask_head.quadtree import Nodes
from model.mask_head.roi_features import RoIPyramid
from training.benchmark.cost.measures import alternate, count_flops, count_operators, cuda_peak_bytes, peak_bytes
from training.benchmark.cost.subjects import fixed_nodes, open_network

MASK_RCNN = (
    "MODEL.META_ARCHITECTURE",
    "GeneralizedRCNN",
    "MODEL.ROI_HEADS.NAME",
    "StandardROIHeads",
    "MODEL.ROI_MASK_HEAD.NAME",
    "MaskRCNNConvUpsampleHead",
)


def attend_storing_weights(
    mixed: Tensor,
    lengths: list[int],
    dropout: float = 0.0,  # noqa: ARG001 - the signature of the function it stands for
    scale: float | None = None,
) -> Tensor:
    """As :func:`model.mask_head.encoder_layers.attend`, one sequence at a time with its (H, T, T) weights in memory."""
    parts = []
    for part in mixed.split(lengths):
        queries, keys, values = part.permute(1, 2, 0, 3)
        logits = queries @ keys.transpose(1, 2) * (scale or queries.shape[-1] ** -0.5)
        parts.append((logits.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(parts)


def dense_features(self: RoIPyramid, levels: list[Nodes], sizes: list[int]) -> list[Tensor]:
    """As :meth:`RoIPyramid.at`, by pooling whole grids; places outside them are not available."""
    return [
        self.dense(depth, size)[nodes.roi, :, nodes.y, nodes.x]
        for depth, (nodes, size) in enumerate(zip(levels, sizes, strict=True))
    ]


@contextmanager
def authors_way() -> Iterator[None]:
    """Meanwhile our mask head computes as the authors' code does."""
    with (
        mock.patch.object(model.mask_head.encoder_layers, "attend", attend_storing_weights),
        mock.patch.object(RoIPyramid, "at", dense_features),
    ):
        yield


def head_call(
    network: nn.Module, cfg: CfgNode, *, height: int, width: int, instances: int, device: str
) -> Callable[[], list[Instances]]:
    """A call of a network's mask branch on FPN features of noise and boxes of several sizes, the same for all."""
    generator = torch.Generator().manual_seed(0)
    parts: Any = network
    shapes = parts.backbone.output_shape()
    features = {
        name: torch.randn(1, shape.channels, -(-height // shape.stride), -(-width // shape.stride), generator=generator)
        for name, shape in shapes.items()
        if name in cfg.MODEL.ROI_HEADS.IN_FEATURES
    }
    features = {name: feature.to(device) for name, feature in features.items()}
    sides = torch.rand(instances, 2, generator=generator) * 0.3 + 0.1
    corner = torch.rand(instances, 2, generator=generator) * (1 - sides)
    frame = torch.tensor([width, height], dtype=torch.float32)
    given = Instances((height, width))
    given.pred_boxes = Boxes(torch.cat([corner * frame, (corner + sides) * frame], dim=1).to(device))
    given.pred_classes = torch.zeros(instances, dtype=torch.int64, device=device)
    given.scores = torch.ones(instances, device=device)

    @torch.inference_mode()
    def call() -> list[Instances]:
        found: list[Instances] = parts.roi_heads._forward_mask(features, [given[:]])
        return found

    return call


def compare_heads(
    config: str,
    *,
    height: int = 800,
    width: int = 1216,
    instances: int = 10,
    nodes: int = 560,
    repeats: int = 5,
    device: str = "cpu",
    overrides: tuple[str, ...] = (),
    timed: bool = True,
) -> dict[str, Any]:
    """Operations, operator calls, peak memory and seconds of the heads, and the ratios to ours.

    Args:
        nodes: of each instance, see :func:`training.benchmark.cost.subjects.fixed_nodes`.
        timed: also measure seconds: medians of ``repeats`` turns.
    """
    ours, cfg = open_network(config=config, device=device, overrides=overrides)
    plain, plain_cfg = open_network(config=config, device=device, overrides=[*overrides, *MASK_RCNN])
    sizes: dict[str, Any] = {"height": height, "width": width, "instances": instances, "device": device}
    our_call, plain_call = head_call(ours, cfg, **sizes), head_call(plain, plain_cfg, **sizes)

    def authors_call() -> list[Instances]:
        with authors_way():
            return our_call()

    calls = {"ours": our_call, "authors_way": authors_call, "mask_rcnn": plain_call}
    with fixed_nodes(ours, nodes):
        difference = _largest_difference(our_call(), authors_call())
        subjects: dict[str, dict[str, Any]] = {
            name: {
                "flops": count_flops(call)["total"],
                "operators": sum(count_operators(call).values()),
                "peak_bytes": peak_bytes(call),
                "cuda_peak_bytes": cuda_peak_bytes(call, device),
            }
            for name, call in calls.items()
        }
        if timed:
            seconds = alternate(list(calls.values()), device=device, repeats=repeats)
            for subject, value in zip(subjects.values(), seconds, strict=True):
                subject["seconds"] = value
    measures = ("flops", "operators", "peak_bytes", *(["seconds"] if timed else []))
    ratios = {
        name: {measure: subject[measure] / subjects["ours"][measure] for measure in measures}
        for name, subject in subjects.items()
    }
    return {
        "setting": sizes | {"nodes": nodes, "threads": torch.get_num_threads()},
        "largest_difference": difference,
        "subjects": subjects,
        "ratios_to_ours": ratios,
    }


def _largest_difference(ours: list[Instances], theirs: list[Instances]) -> float:
    """Between the masks' probabilities: both ways give the same."""
    return float((ours[0].pred_masks - theirs[0].pred_masks).abs().max())


def head_costs_text(outcome: dict[str, Any]) -> str:
    """The comparison as lines for people."""
    setting = outcome["setting"]
    lines = [
        f"{setting['instances']} instances of {setting['nodes']} nodes, {setting['width']} x {setting['height']} px, "
        f"{setting['device']}, {setting['threads']} threads",
        f"{'mask branch':<14}{'seconds':>10}{'ratio':>8}{'GFLOP':>9}{'ratio':>8}{'operators':>11}"
        f"{'peak MB':>9}{'ratio':>8}",
    ]
    for name, subject in outcome["subjects"].items():
        ratio = outcome["ratios_to_ours"][name]
        seconds = f"{subject['seconds']:10.3f}{ratio['seconds']:8.2f}" if "seconds" in subject else " " * 18
        lines.append(
            f"{name:<14}{seconds}{subject['flops'] / 1e9:9.1f}{ratio['flops']:8.2f}{subject['operators']:11d}"
            f"{subject['peak_bytes'] / 1e6:9.0f}{ratio['peak_bytes']:8.2f}"
        )
    lines.append(f"ours and the authors' way differ by at most {outcome['largest_difference']:.1e}")
    return "\n".join(lines)
