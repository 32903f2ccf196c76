"""Cost of whole networks, of mask heads and of the refinement alone: operations counted, calls timed in turns.

Networks have random weights and noise as input, and a given number of instances with a given number of nodes: cost
depends on those numbers, not on the picture.

The mask heads are ours, the authors' way of computing the same, and Mask R-CNN's. The authors' way is our head in a
mode that computes as theirs does: whole 28, 56 and 112 grids of RoI features of which only the nodes are used, one
instance after another, attention weights stored. Outputs are equal.

Shape shorthand: R RoIs, C channels, T tokens, H heads, D channels a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

import model.mask_head.encoder_layers
from model.config import override
from model.inference.precision import to_bf16
from model.mask_head.quadtree import Nodes
from model.mask_head.roi_features import RoIPyramid
from model.network import build_network
from training.benchmark.cost.measures import (
    alternate,
    count_flops,
    cuda_peak_bytes,
    fixed_nodes,
    force_detections,
    image_record,
    peak_bytes,
    training_record,
)
from training.engine.build import get_training_config

Call = Callable[[], object]
Costs = dict[str, dict[str, Any]]
ProgressCallback = Callable[[str], object]

MASK_RCNN = (
    "MODEL.META_ARCHITECTURE",
    "GeneralizedRCNN",
    "MODEL.ROI_HEADS.NAME",
    "StandardROIHeads",
    "MODEL.ROI_MASK_HEAD.NAME",
    "MaskRCNNConvUpsampleHead",
)
POINTREND = "ablations/pointrend"
# measure -> (heading, unit, decimals), in printing order
_MEASURES = {
    "seconds": ("seconds", 1.0, 3),
    "flops": ("GFLOP", 1e9, 1),
    "peak_bytes": ("peak MB", 1e6, 0),
    "cuda_peak_bytes": ("GPU MB", 1e6, 0),
}


@dataclass(frozen=True)
class CostSetting:
    """Configuration, image size and device of a cost measurement.

    Attributes:
        config: of Mask Transfiner, with random weights.
        overrides: configuration keys and values. repeats: number of timed turns, of which the median counts; 0: none.
    """

    config: str = ""
    height: int = 800
    width: int = 1216
    device: str = "cpu"
    overrides: tuple[str, ...] = ()
    repeats: int = 3

    def open(self, config: str | None = None, changes: Sequence[object] = ()) -> tuple[nn.Module, CfgNode]:
        """Build the network of this or another configuration with random weights; returns its configuration, too."""
        cfg = get_training_config(config or self.config)
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = self.device, ""
        override(cfg, [*changes, *self.overrides])
        torch.manual_seed(0)
        return build_network(cfg).eval(), cfg

    def facts(self, **extra_facts: object) -> dict[str, Any]:
        """The setting and further values, for reports."""
        facts = {name: getattr(self, name) for name in ("config", "height", "width", "device")}
        return facts | {"threads": torch.get_num_threads()} | extra_facts


def compare_calls(
    calls: Mapping[str, Call], setting: CostSetting, *, memory: bool = False, count_work: bool = True
) -> Costs:
    """Measure operations, peak memory and seconds of calls by name; "ratios" are to the first call's.

    Args:
        memory: also count the peak memory of tensors; torch's own figure for a GPU is always included.
        count_work: False to measure seconds alone, on a CPU the processor's.
    """
    costs: Costs = {name: _counts(call, setting, memory=memory) if count_work else {} for name, call in calls.items()}
    if setting.repeats:
        seconds = alternate(
            list(calls.values()), device=setting.device, repeats=setting.repeats, cpu_time=not count_work
        )
        for cost, value in zip(costs.values(), seconds, strict=True):
            cost["seconds"] = value
    first_cost = next(iter(costs.values()))
    measures = [measure for measure in _MEASURES if first_cost.get(measure)]
    for cost in costs.values():
        cost["ratios"] = {measure: cost[measure] / first_cost[measure] for measure in measures}
    return costs


def _counts(call: Call, setting: CostSetting, *, memory: bool) -> dict[str, Any]:
    return {
        "flops": count_flops(call),
        "peak_bytes": peak_bytes(call) if memory else None,
        "cuda_peak_bytes": cuda_peak_bytes(call, setting.device),
    }


def costs_table(costs: Costs) -> list[str]:
    """Lines of a table of all measures, with their ratios to the first row's."""
    measures = [measure for measure in _MEASURES if measure in next(iter(costs.values()))["ratios"]]
    lines = [f"  {'':<20}" + "".join(f"{_MEASURES[measure][0]:>11}{'ratio':>7}" for measure in measures)]
    for name, cost in costs.items():
        cells = ""
        for measure in measures:
            _, unit, decimals = _MEASURES[measure]
            cells += f"{cost[measure] / unit:11.{decimals}f}{cost['ratios'][measure]:7.2f}"
        lines.append(f"  {name:<20}{cells}")
    return lines


def compare_networks(
    setting: CostSetting,
    *,
    instances: Sequence[int] = (50, 100),
    nodes: int = 364,
    precision: str = "fp32",
    tell: ProgressCallback = len,
) -> dict[str, Any]:
    """Inference of Mask Transfiner, Mask R-CNN and PointRend on one image, masks pasted into it.

    Args:
        instances: numbers of detections that are kept, a comparison each.
        nodes: of each of our instances; 364 and the 196 reference points are the about 560 tokens of a trained network.
        precision: "bf16" adds the three networks in bf16 on a CPU, converted alike, and a PointRend that computes the
            detected class alone; then only the processor's seconds are measured.
        tell: called with a line before every run of a network, since a run takes minutes.
    """
    return {
        "setting": setting.facts(nodes=nodes, precision=precision),
        "by_instances": {
            count: compare_calls(
                _inference_calls(setting, count, nodes, tell, half=precision == "bf16"),
                setting,
                count_work=precision != "bf16",
            )
            for count in instances
        },
    }


def _inference_calls(
    setting: CostSetting, count: int, nodes: int, tell: ProgressCallback, *, half: bool
) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for name, (config, changes) in _subjects(setting).items():
        kinds = ["", " bf16", " bf16, own class"][: 1 if not half else 3 if name == "pointrend" else 2]
        # The first call is the reference of the ratios.
        for kind in kinds[::-1] if half and name == "ours" else kinds:
            calls[name + kind] = _inference(name + kind, setting, config, changes, count, nodes, tell)
    return calls


def compare_training(setting: CostSetting, *, instances: int = 7, tell: ProgressCallback = len) -> dict[str, Any]:
    """Compare a training step on one image, without the optimizer's, with Mask R-CNN's.

    Args:
        instances: of the image; 7 is COCO's mean.
    """
    calls = {
        name: _step(name, setting, config, changes, instances, tell)
        for name, (config, changes) in _subjects(setting).items()
        if name != "pointrend"
    }
    return {"setting": setting.facts(instances=instances), "training": compare_calls(calls, setting)}


def network_costs_text(inference: dict[str, Any], training: dict[str, Any] | None = None) -> str:
    """Write both comparisons as text."""
    facts = inference["setting"]
    lines = [
        f"{facts['config']}, {facts['width']} x {facts['height']} px, {facts['nodes']} nodes an instance, "
        f"{facts['device']}, {facts['threads']} threads; ratios are to ours"
    ]
    for count, costs in inference["by_instances"].items():
        lines += [f"inference, {count} instances:", *costs_table(costs)]
    if training is not None:
        facts = training["setting"]
        lines.append(f"training step, an image of {facts['instances']} instances:")
        lines += costs_table(training["training"])
    return "\n".join(lines)


def _subjects(setting: CostSetting) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Configuration and overrides of each network, by name."""
    return {"ours": (setting.config, ()), "mask_rcnn": (setting.config, MASK_RCNN), "pointrend": (POINTREND, ())}


def _inference(
    name: str,
    setting: CostSetting,
    config: str,
    changes: tuple[str, ...],
    count: int,
    nodes: int,
    tell: ProgressCallback,
) -> Call:
    overrides = force_detections(get_training_config(config), count)
    network, _ = setting.open(config, [*changes, *overrides])
    parts: Any = network
    # Boxes of random weights lie outside the image or are empty; without offsets they are the anchors.
    for layer in (parts.proposal_generator.rpn_head.anchor_deltas, parts.roi_heads.box_predictor.bbox_pred):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    if "bf16" in name:
        _convert(network, name)
    record = image_record(setting.height, setting.width)

    @torch.inference_mode()
    def call() -> object:
        tell(f"{name}, {count} instances")
        with fixed_nodes(network, nodes if name.startswith("ours") else None):
            instances = network([record])[0]["instances"]
        if len(instances) != count:
            raise RuntimeError(f"{name} kept {len(instances)} instances, {count} were asked for")
        return instances

    return call


def _convert(network: nn.Module, name: str) -> None:
    if name.startswith("pointrend"):
        # Needs detectron2's project, which nothing else here does.
        from training.benchmark.cost.half_precision import point_rend_to_bf16

        point_rend_to_bf16(network, own_class="own class" in name)
    else:
        to_bf16(network)


def _step(
    name: str, setting: CostSetting, config: str, changes: tuple[str, ...], instances: int, tell: ProgressCallback
) -> Call:
    network, cfg = setting.open(config, changes)
    classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    batch = [training_record(setting.height, setting.width, instances=instances, classes=classes)]
    network.train()

    def call() -> None:
        tell(f"{name}, training step")
        network.zero_grad(set_to_none=True)
        with EventStorage():
            losses = network(batch)
        sum(losses.values()).backward()

    return call


def attend_storing_weights(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: list[int],
    dropout: float = 0.0,  # noqa: ARG001 - the signature of the function it stands for
    scale: float | None = None,
) -> Tensor:
    """As :func:`model.mask_head.encoder_layers.attend`, one sequence at a time with its (H, T, T) weights in memory."""
    parts = []
    for sequence in zip(queries.split(lengths), keys.split(lengths), values.split(lengths), strict=True):
        query, key, value = (part.transpose(0, 1) for part in sequence)
        logits = query @ key.transpose(1, 2) * (scale or query.shape[-1] ** -0.5)
        parts.append((logits.softmax(-1) @ value).transpose(0, 1))
    return torch.cat(parts)


def dense_features(self: RoIPyramid, levels: list[Nodes], sizes: list[int]) -> list[Tensor]:
    """As :meth:`RoIPyramid.at`, by pooling whole grids; places outside them are not available."""
    return [
        self.dense(depth, size)[nodes.roi, :, nodes.y, nodes.x]
        for depth, (nodes, size) in enumerate(zip(levels, sizes, strict=True))
    ]


@contextmanager
def authors_way() -> Iterator[None]:
    """Let our mask head compute as the authors' code does in this context."""
    with (
        mock.patch.object(model.mask_head.encoder_layers, "attend", attend_storing_weights),
        mock.patch.object(RoIPyramid, "at", dense_features),
    ):
        yield


def head_call(network: nn.Module, cfg: CfgNode, setting: CostSetting, instances: int) -> Callable[[], list[Instances]]:
    """Make a call of a network's mask branch on noise features and boxes of several sizes, equal for all networks."""
    height, width, device = setting.height, setting.width, setting.device
    generator = torch.Generator().manual_seed(0)
    parts: Any = network
    features = {
        name: torch.randn(
            1, shape.channels, -(-height // shape.stride), -(-width // shape.stride), generator=generator
        ).to(device)
        for name, shape in parts.backbone.output_shape().items()
        if name in cfg.MODEL.ROI_HEADS.IN_FEATURES
    }
    sides = torch.rand(instances, 2, generator=generator) * 0.3 + 0.1
    corner = torch.rand(instances, 2, generator=generator) * (1 - sides)
    frame = torch.tensor([width, height], dtype=torch.float32)
    detections = Instances((height, width))
    detections.pred_boxes = Boxes(torch.cat([corner * frame, (corner + sides) * frame], dim=1).to(device))
    detections.pred_classes = torch.zeros(instances, dtype=torch.int64, device=device)
    detections.scores = torch.ones(instances, device=device)

    @torch.inference_mode()
    def call() -> list[Instances]:
        masks: list[Instances] = parts.roi_heads._forward_mask(features, [detections[:]])
        return masks

    return call


def compare_heads(setting: CostSetting, *, instances: int = 10, nodes: int = 560) -> dict[str, Any]:
    """Compare the cost of the three mask heads; also the largest difference of probabilities, ours to the authors' way.

    Args:
        nodes: of each instance, see :func:`training.benchmark.cost.measures.fixed_nodes`.
    """
    ours, cfg = setting.open()
    plain, plain_cfg = setting.open(changes=MASK_RCNN)
    our_call, plain_call = head_call(ours, cfg, setting, instances), head_call(plain, plain_cfg, setting, instances)

    def authors_call() -> list[Instances]:
        with authors_way():
            return our_call()

    with fixed_nodes(ours, nodes):
        difference = (our_call()[0].pred_masks - authors_call()[0].pred_masks).abs().max()
        calls = {"ours": our_call, "authors_way": authors_call, "mask_rcnn": plain_call}
        heads = compare_calls(calls, setting, memory=True)
    return {
        "setting": setting.facts(instances=instances, nodes=nodes),
        "largest_difference": float(difference),
        "heads": heads,
    }
