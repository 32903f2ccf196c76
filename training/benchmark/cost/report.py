"""The cost of the refinement alone and of a whole network, as one dict ready for JSON, and as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch._subclasses.fake_tensor import FakeTensorMode

from model.checkpoints.checkpoint import load_checkpoint
from training.benchmark.cost.measures import (
    count_flops,
    count_operators,
    count_parameters,
    cuda_peak_bytes,
    frames_per_second,
    peak_bytes,
)
from training.benchmark.cost.subjects import (
    fixed_nodes,
    force_detections,
    image_record,
    open_network,
    refinement_call,
    refiner_of,
)
from training.engine.config import get_training_config
from training.evaluation.inspection import mask_head_of


def refinement_cost(cfg: CfgNode, lengths: list[int], *, channels: int = 256, training: bool = False) -> dict[str, Any]:
    """Operations, parameters and peak memory of the refiner on sequences of these lengths, without computing them."""
    with FakeTensorMode():
        refiner = refiner_of(cfg, channels).train(training)
        call = refinement_call(refiner, lengths, channels=channels)

        def run() -> None:
            with torch.set_grad_enabled(training):
                out = call()
                if training:
                    out.sum().backward()

        flops = count_flops(run)
        peak = peak_bytes(run, refiner)
    return {
        "sequences": len(lengths),
        "tokens": sum(lengths),
        "flops": flops["total"],
        "parameters": count_parameters(refiner)["total"],
        "peak_bytes": peak,
    }


def whole_cost(
    *,
    config: str | None = None,
    weights: Path | None = None,
    height: int = 800,
    width: int = 1216,
    instances: int = 100,
    nodes: int | None = None,
    device: str = "cpu",
    overrides: tuple[str, ...] = (),
    speed: bool = True,
    iterations: int | None = None,
    runs: int = 5,
) -> dict[str, Any]:
    """Operations, parameters, operator calls and frames per second of a whole network on one image; memory on a GPU.

    Args:
        instances: of the image that are all kept, whatever their scores (0: what the network finds).
        nodes: of each instance's quadtree, or what the network finds.
        speed: also measure frames per second, see :func:`training.benchmark.cost.measures.frames_per_second`.
    """
    cfg = load_checkpoint(weights).cfg if weights else get_training_config(str(config))
    forced = force_detections(cfg, instances) if instances else []
    network, cfg = open_network(config=config, weights=weights, device=device, overrides=[*overrides, *forced])
    records = [image_record(height, width, seed) for seed in range(2)]

    @torch.inference_mode()
    def infer(index: int = 0) -> int:
        return len(network([records[index % len(records)]])[0]["instances"])

    with fixed_nodes(network, nodes):
        found = infer()
        outcome: dict[str, Any] = {
            "device": device,
            "image": [height, width],
            "instances": found,
            "nodes_per_instance": nodes if mask_head_of(network) else None,
            "parameters": count_parameters(network),
            "flops": count_flops(infer)["total"],
            "operators": sum(count_operators(infer).values()),
            "cuda_peak_bytes": cuda_peak_bytes(infer, device),
        }
        if speed:
            measured = frames_per_second(infer, device=device, iterations=iterations, runs=runs)
            outcome["speed"] = measured.as_dict()
    return outcome


def costs_text(refinement: dict[str, Any], whole: dict[str, Any] | None) -> str:
    """Both as lines for people."""
    lines = [
        f"refinement alone, {refinement['sequences']} instances, {refinement['tokens']} tokens:",
        f"  {refinement['flops'] / 1e9:10.2f} GFLOP   {refinement['parameters'] / 1e6:8.2f} M parameters   "
        f"{refinement['peak_bytes'] / 2**20:8.0f} MiB peak",
    ]
    if whole is None:
        return "\n".join(lines)
    height, width = whole["image"]
    lines += [
        f"whole network on {whole['device']}, {width} x {height} px, {whole['instances']} instances:",
        f"  {whole['flops'] / 1e9:10.2f} GFLOP   {whole['parameters']['total'] / 1e6:8.2f} M parameters   "
        f"{whole['operators']} operators",
    ]
    if whole["cuda_peak_bytes"] is not None:
        lines.append(f"  {whole['cuda_peak_bytes'] / 2**20:10.0f} MiB peak in torch's allocator")
    if "speed" in whole:
        speed = whole["speed"]
        lines.append(
            f"  {speed['mean_fps']:10.3f} frames a second (+- {speed['std_fps']:.3f}, {len(speed['runs_fps'])} runs "
            f"of {speed['iterations']}, batch 1, post-processing included)"
        )
    return "\n".join(lines)
