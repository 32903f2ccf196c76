"""Whole networks beside one another in one run: Mask Transfiner, detectron2's Mask R-CNN and its PointRend.

All have random weights, keep the same number of instances of one image of noise, and ours the node count that is
asked for: cost depends on those numbers, not on what is in the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import nn

from training.benchmark.cost.heads import MASK_RCNN
from training.benchmark.cost.measures import alternate, count_flops, count_operators, cuda_peak_bytes
from training.benchmark.cost.subjects import (
    fixed_nodes,
    force_detections,
    image_record,
    open_network,
    training_record,
)
from training.engine.config import get_training_config

Call = Callable[[], object]
ProgressCallback = Callable[[str], object]
POINTREND = "ablations/pointrend"


def _quiet(_: str) -> None:
    """Says nothing."""


def compare_networks(
    config: str,
    *,
    height: int = 800,
    width: int = 1216,
    instances: Sequence[int] = (50, 100),
    nodes: int = 364,
    repeats: int = 3,
    device: str = "cpu",
    overrides: tuple[str, ...] = (),
    timed: bool = True,
    tell: ProgressCallback = _quiet,
) -> dict[str, Any]:
    """Inference on one image, masks pasted into it: operations, operator calls, seconds, ratios to ours;
    peak memory on a GPU.

    Args:
        instances: numbers of detections that are kept, a comparison each.
        nodes: of each of our instances; 364 and the 196 reference points are the about 560 tokens of a trained network.
        overrides: configuration keys and values for all three. timed: medians of ``repeats`` turns, else no seconds.
        tell: hears of every run of a network, for minutes without a word look like a hang.
    """
    sizes = {"height": height, "width": width}
    return {
        "setting": sizes | {"config": config, "nodes": nodes, "device": device, "threads": torch.get_num_threads()},
        "by_instances": {
            count: _compared(
                {
                    name: _told(
                        _inference(name, network, sizes, count, nodes, device, overrides),
                        partial(tell, f"{name}, {count} instances"),
                    )
                    for name, network in _configurations(config).items()
                },
                device,
                repeats if timed else 0,
            )
            for count in instances
        },
    }


def compare_training(
    config: str,
    *,
    height: int = 800,
    width: int = 1216,
    instances: int = 7,
    images: int = 1,
    repeats: int = 3,
    device: str = "cpu",
    overrides: tuple[str, ...] = (),
    timed: bool = True,
    tell: ProgressCallback = _quiet,
) -> dict[str, Any]:
    """A step of training without the optimizer's, ours beside Mask R-CNN's; as `compare_networks`.

    Args:
        instances: ground truth of each image, 7 as COCO has. images: of a batch.
    """
    calls = {
        name: _told(
            _step(network, height, width, instances, images, device, overrides),
            partial(tell, f"{name}, training step"),
        )
        for name, network in _configurations(config).items()
        if name != "pointrend"
    }
    setting = {"config": config, "height": height, "width": width, "instances": instances, "images": images}
    return {
        "setting": setting | {"device": device, "threads": torch.get_num_threads()},
        "training": _compared(calls, device, repeats if timed else 0),
    }


def _configurations(config: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {"ours": (config, ()), "mask_rcnn": (config, MASK_RCNN), "pointrend": (POINTREND, ())}


def _told(call: Call, tell: Callable[[], object]) -> Call:
    def told() -> object:
        tell()
        return call()

    return told


def _inference(
    name: str,
    network_of: tuple[str, tuple[str, ...]],
    sizes: dict[str, int],
    count: int,
    nodes: int,
    device: str,
    overrides: tuple[str, ...],
) -> Call:
    config, changes = network_of
    forced = force_detections(get_training_config(config), count)
    network, _ = open_network(config=config, device=device, overrides=[*changes, *overrides, *forced])
    _predict_anchors(network)
    record = image_record(**sizes)

    @torch.inference_mode()
    def call() -> object:
        with fixed_nodes(network, nodes if name == "ours" else None):
            found = network([record])[0]["instances"]
        if len(found) != count:
            raise RuntimeError(f"{name} kept {len(found)} instances, {count} were asked for")
        return found

    return call


def _predict_anchors(network: nn.Module) -> None:
    """Boxes of random weights lie outside the image or are empty; without offsets they are the anchors."""
    parts: Any = network
    for layer in (parts.proposal_generator.rpn_head.anchor_deltas, parts.roi_heads.box_predictor.bbox_pred):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def _step(
    network_of: tuple[str, tuple[str, ...]],
    height: int,
    width: int,
    instances: int,
    images: int,
    device: str,
    overrides: tuple[str, ...],
) -> Call:
    config, changes = network_of
    network, cfg = open_network(config=config, device=device, overrides=[*changes, *overrides])
    classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    batch = [training_record(height, width, instances=instances, classes=classes, seed=seed) for seed in range(images)]
    network.train()
    return lambda: _learn(network, batch)


def _learn(network: nn.Module, batch: list[dict[str, Any]]) -> None:
    network.zero_grad(set_to_none=True)
    with EventStorage():
        losses = network(batch)
    sum(losses.values()).backward()


def _compared(calls: dict[str, Call], device: str, repeats: int) -> dict[str, dict[str, Any]]:
    """By name: flops, operators, cuda_peak_bytes (None on a CPU), seconds if timed; under "ratios" each over ours."""
    found: dict[str, dict[str, Any]] = {
        name: {
            "flops": count_flops(call)["total"],
            "operators": sum(count_operators(call).values()),
            "cuda_peak_bytes": cuda_peak_bytes(call, device),
        }
        for name, call in calls.items()
    }
    if repeats:
        for one, value in zip(
            found.values(), alternate(list(calls.values()), device=device, repeats=repeats), strict=True
        ):
            one["seconds"] = value
    measures = ("flops", "operators", *(["seconds"] if repeats else []))
    for one in found.values():
        one["ratios"] = {measure: one[measure] / found["ours"][measure] for measure in measures}
    return found


def network_costs_text(inference: dict[str, Any], training: dict[str, Any] | None = None) -> str:
    """Both as lines for people."""
    setting = inference["setting"]
    lines = [
        f"{setting['config']}, {setting['width']} x {setting['height']} px, {setting['nodes']} nodes an instance, "
        f"{setting['device']}, {setting['threads']} threads; ratios are to ours",
    ]
    for count, found in inference["by_instances"].items():
        lines += [f"inference, {count} instances:", *_table(found)]
    if training is not None:
        setting = training["setting"]
        lines += [
            f"training step, {setting['images']} image(s) of {setting['instances']} instances:",
            *_table(training["training"]),
        ]
    return "\n".join(lines)


def _table(found: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"  {'':<10}{'seconds':>9}{'ratio':>7}{'GFLOP':>9}{'ratio':>7}{'operators':>11}{'GPU MB':>8}"]
    for name, one in found.items():
        ratio = one["ratios"]
        seconds = f"{one['seconds']:9.2f}{ratio['seconds']:7.2f}" if "seconds" in one else " " * 16
        memory = f"{one['cuda_peak_bytes'] / 1e6:8.0f}" if one["cuda_peak_bytes"] is not None else " " * 7 + "-"
        lines.append(
            f"  {name:<10}{seconds}{one['flops'] / 1e9:9.1f}{ratio['flops']:7.2f}{one['operators']:11d}{memory}"
        )
    return lines
