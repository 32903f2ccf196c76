"""Evaluate a checkpoint on a set: mask AP and boundary AP of the refined and of the coarse masks, from one pass.

The pass may be shared among processes, each with its own network: images are independent, and with the same number of
threads an image's arithmetic is the same in every process.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import nn

from model.checkpoints.checkpoint import load_checkpoint
from model.checkpoints.metadata import read_metadata
from model.checkpoints.state_dict import load_weights
from model.config import override
from model.network import build_network
from training.datasets import AnySet, ImageLeftOutError, Sample
from training.datasets.loader import to_test_input
from training.evaluation.coco_format import TruthBuilder, instance_results
from training.metrics.coco import coco_ap
from training.metrics.parallel import map_in_processes

Metrics = dict[str, dict[str, float]]
Result = dict[str, Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of a checkpoint on a set.

    Attributes:
        refined: ``{"mask": {"AP": ...}, "boundary": {...}}``, fractions in 0..1, of the refined masks.
        coarse: the same for the coarse masks of the same detections (the network without its refinement).
        images: how many were evaluated.
        seconds_per_image: of the network with its post-processing, without the metrics.
    """

    refined: Metrics
    coarse: Metrics
    images: int
    seconds_per_image: float

    @property
    def boundary_gain(self) -> float:
        """Boundary AP that refinement adds, as a fraction."""
        return self.refined["boundary"]["AP"] - self.coarse["boundary"]["AP"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON and model cards."""
        return asdict(self) | {"boundary_gain": self.boundary_gain}


def load_for_evaluation(
    directory: Path, device: str, overrides: list[str] | None = None
) -> tuple[nn.Module, CfgNode, tuple[str, ...]]:
    """The network of a checkpoint, keeping its coarse masks; its configuration and class names.

    On a CPU this process keeps freed memory from now on, see `keep_freed_memory`.

    Raises:
        CheckpointError: the directory is no checkpoint, or its weights do not fit its configuration.
    """
    cfg, state, metadata = load_checkpoint(directory)
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.TRANSFINER.KEEP_COARSE = True
    override(cfg, overrides or [])
    keep_freed_memory(device)
    network = build_network(cfg)
    load_weights(network, state, source=str(directory))
    return network.eval(), cfg, tuple(metadata["classes"])


def evaluate_checkpoint(
    directory: Path,
    samples: AnySet,
    *,
    device: str = "cpu",
    ratio: float = 0.02,
    overrides: list[str] | None = None,
    processes: int = 1,
    progress: Callable[[int], object] = int,
    observe: Callable[[Sample, Instances], object] | None = None,
) -> Evaluation:
    """Run a checkpoint over a set and measure it.

    Args:
        samples: the set; its classes must be the checkpoint's.
        ratio: of the boundary's width to the image diagonal (0.02 for COCO and our scenes, 0.005 for Cityscapes).
        processes: number that share the images (on a CPU), each with this one's number of threads.
        observe: called with each sample and its detections; this process then does all the work.

    Raises:
        ValueError: the set has other classes than the checkpoint.
    """
    names = tuple(read_metadata(directory)["classes"])
    if names != samples.class_names:
        raise ValueError(f"the checkpoint knows {', '.join(names)}; the set has {', '.join(samples.class_names)}")
    truth, refined, coarse, seconds = TruthBuilder(names), list[Result](), list[Result](), 0.0
    images, has_observer = 0, observe is not None
    start_arguments = (directory, samples, device, overrides, torch.get_num_threads())
    indices = [(index, has_observer) for index in range(len(samples))]
    process_count = 1 if has_observer else processes
    for read_count, result in enumerate(
        map_in_processes(_evaluate_image, indices, process_count, start=_open, start_with=start_arguments), 1
    ):
        progress(read_count)
        if result is None:
            continue
        images += 1
        truth.join(result.truth)
        refined += result.refined
        coarse += result.coarse
        seconds += result.seconds
        if observe is not None and result.observation is not None:
            observe(*result.observation)
    _close()
    dataset = truth.build()

    def measure(results: list[Result]) -> Metrics:
        return {
            "mask": coco_ap(dataset, results, "segm", processes=processes),
            "boundary": coco_ap(dataset, results, "boundary", ratio=ratio, processes=processes),
        }

    return Evaluation(measure(refined), measure(coarse), images, seconds / max(1, images))


@dataclass(frozen=True, slots=True)
class _ImageResult:
    """Truth and detections of one image.

    Attributes:
        truth: of this image alone. refined, coarse: COCO results, of the same detections.
        seconds: of the network.
        observation: the sample and its detections, if the caller observes.
    """

    truth: TruthBuilder
    refined: list[Result]
    coarse: list[Result]
    seconds: float
    observation: tuple[Sample, Instances] | None


# Network, configuration and set of this process.
_context: tuple[nn.Module, CfgNode, AnySet] | None = None


def _open(directory: Path, samples: AnySet, device: str, overrides: list[str] | None, threads: int) -> None:
    """Load the network into this process."""
    global _context
    torch.set_num_threads(threads)
    network, cfg, _ = load_for_evaluation(directory, device, overrides)
    _context = network, cfg, samples


def _close() -> None:
    global _context
    _context = None


def _evaluate_image(index: int, keep_sample: bool) -> _ImageResult | None:
    assert _context is not None
    network, cfg, samples = _context
    truth = TruthBuilder(samples.class_names)
    try:
        sample = samples[index]
    except ImageLeftOutError as error:
        logger.warning("not evaluated: %s", error)
        return None
    truth.add(sample)
    began_s = time.perf_counter()
    instances = infer(network, to_test_input(sample, cfg))
    seconds = time.perf_counter() - began_s
    refined, coarse = (
        instance_results(sample.image_id, instances, masks) for masks in ("pred_masks", "pred_coarse_masks")
    )
    return _ImageResult(truth, refined, coarse, seconds, (sample, instances) if keep_sample else None)


@torch.inference_mode()
def infer(network: nn.Module, record: dict[str, Any]) -> Instances:
    """Detections of one network input, on the CPU."""
    return network([record])[0]["instances"].to("cpu")


# Parameters of mallopt(3), by the numbers that glibc's malloc.h gives them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Larger tensors still come from the system one by one; up to this much may lie idle at the heap's end.
KEPT_BYTES = 1 << 30


def keep_freed_memory(device: str = "cpu") -> bool:
    """Make the C library keep freed memory for later tensors, for the rest of this process.

    A feature map of a large image has tens of megabytes. glibc gets each from the system and returns it as soon as it
    is freed, and the system clears every page again. It cannot be undone. Returns whether anything changed: nothing
    does for a GPU or another C library than glibc.
    """
    if not device.startswith("cpu") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
