"""Measures of a call's cost (operations, peak memory, seconds), and inputs and node counts for it.

Operations and peak memory are counted and so deterministic; seconds are measured. Memory that an operator allocates and
frees before it returns is not counted; on a GPU `torch.cuda` reports the peak as well.

Shape shorthand: R RoIs, L quadtree levels, T tokens, C channels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Instances
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from model.mask_head.head import CoarseOutput, TransfinerMaskHead
from model.mask_head.quadtree import Nodes
from model.mask_head.refiner import NodeCues, SequenceRefiner
from training.evaluation.incoherence_analysis import mask_head_of


def count_flops(run: Callable[[], object]) -> int:
    """Operations (2 x MAC) of a call.

    Fused attention counts as its two products. ``nn.TransformerEncoder``'s fast path would count as 0 in inference, so
    it is off during the call.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def peak_bytes(run: Callable[[], object], *modules: nn.Module) -> int:
    """Most bytes of tensors alive at once during a call, parameters and buffers of ``modules`` included.

    Works on real tensors and under ``FakeTensorMode``, where nothing is computed and nothing allocated.
    """
    tracker = MemTracker()
    tracker.track_external(*modules)
    with tracker:
        run()
    snapshot = tracker.get_tracker_snapshot("peak")
    return sum(int(kinds["Total"]) for kinds in snapshot.values())


def cuda_peak_bytes(run: Callable[[], object], device: str) -> int | None:
    """Peak memory of torch's allocator on a GPU during a call; None on other devices."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))


def frames_per_second(
    run: Callable[[int], object], *, device: str, iterations: int | None = None, runs: int = 5
) -> dict[str, Any]:
    """Time a call on one image by the paper's protocol (section 6.2), for reports.

    Args:
        run: called with the index of the preloaded image to take; network and post-processing.
        iterations: of one run; None: the paper's 200, and 20 on a CPU, which is slower and as steady.
        runs: to average over, after two calls to warm up.
    """
    count = iterations or (200 if device.startswith("cuda") else 20)
    for index in range(2):
        run(index)
    speeds = [count / _seconds(run, count, device) for _ in range(runs)]
    deviation = statistics.stdev(speeds) if runs > 1 else 0.0
    return {"mean_fps": statistics.fmean(speeds), "std_fps": deviation, "runs_fps": speeds, "iterations": count}


def alternate(
    subjects: Sequence[Callable[[], object]], *, device: str, repeats: int, cpu_time: bool = False
) -> list[float]:
    """Median seconds of several calls that take turns, so that what slows the machine slows all of them.

    ``cpu_time``: on a CPU count the processor's time, not the time that passed.
    """
    clock = time.process_time if cpu_time and device == "cpu" else time.perf_counter
    for subject in subjects:
        subject()
    seconds: list[list[float]] = [[] for _ in subjects]
    for _ in range(repeats):
        for record, subject in zip(seconds, subjects, strict=True):
            record.append(_seconds(lambda _, call=subject: call(), 1, device, clock))  # type: ignore[misc]
    return [statistics.median(record) for record in seconds]


def _seconds(
    run: Callable[[int], object], count: int, device: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    _wait(device)
    start_s = clock()
    for index in range(count):
        run(index)
    _wait(device)
    return clock() - start_s


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def refinement_cost(cfg: CfgNode, lengths: list[int], *, channels: int = 256) -> dict[str, int]:
    """Operations and peak memory of a configuration's refiner on sequences of these lengths, on fake tensors."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = channels
    tokens = sum(lengths)
    with FakeTensorMode(), torch.no_grad():
        arguments = TransfinerMaskHead.from_config(cfg, ShapeSpec(channels=channels, height=14, width=14))
        refiner: SequenceRefiner = arguments["refiner"].eval()
        context = torch.zeros(tokens, 9 * channels) if "context" in refiner.node_encoder.cues else None
        feature, position = torch.zeros(tokens, channels), torch.zeros(tokens, channels)
        cues = NodeCues(feature, torch.zeros(tokens), position, context)

        def call() -> torch.Tensor:
            return refiner(cues, lengths)

        return {"tokens": tokens, "flops": count_flops(call), "peak_bytes": peak_bytes(call, refiner)}


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
    """Give every instance ``per_instance`` nodes in this context (None: those that the network finds).

    Each finer level gets twice as many. Random weights find other regions than a trained network, so a cost is
    comparable only at a given node count.
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
    """Spread ``per_instance`` nodes of every RoI evenly over each level's grid; a level's share grows with its side.

    Raises:
        ValueError: more nodes than the levels have places.
    """
    places = sum(size * size for size in sizes)
    if per_instance > places:
        raise ValueError(f"{per_instance} nodes an instance asked for, levels {sizes} have {places} places")
    counts, remaining = [], per_instance
    for depth, size in enumerate(sizes):
        finer = sum(sizes[depth:])
        share = max(round(remaining * size / finer), remaining - sum(s * s for s in sizes[depth + 1 :]))
        counts.append(min(share, size * size))
        remaining -= counts[-1]
    levels = []
    for size, count in zip(sizes, counts, strict=True):
        place = torch.linspace(0, size * size - 1, count, device=device).long()
        roi = torch.arange(rois, device=device).repeat_interleave(count)
        levels.append(Nodes(roi, (place // size).repeat(rois), (place % size).repeat(rois)))
    return levels


def image_record(height: int, width: int) -> dict[str, Any]:
    """A network input: an image of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    return {"image": torch.from_numpy(pixels), "height": height, "width": width}


def training_record(height: int, width: int, *, instances: int, classes: int) -> dict[str, Any]:
    """A training input: an image of noise with ellipses as ground truth."""
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
