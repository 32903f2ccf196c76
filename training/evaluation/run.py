"""Evaluate a checkpoint on a set: mask AP and boundary AP of the refined and of the coarse masks, from one pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances
from torch import nn

from model.checkpoint import load_checkpoint
from model.network import build_network
from model.state_keys import load_weights
from training.datasets import AnySet, Sample
from training.evaluation.boundary_ap import boundary_ap
from training.evaluation.coco_ap import mask_ap
from training.evaluation.coco_format import TruthBuilder, detections
from training.mapper import to_network_input

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a checkpoint reached.

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
        return {
            "refined": self.refined,
            "coarse": self.coarse,
            "boundary_gain": self.boundary_gain,
            "images": self.images,
            "seconds_per_image": self.seconds_per_image,
        }


def load_for_evaluation(
    directory: Path, device: str, overrides: list[str] | None = None
) -> tuple[nn.Module, CfgNode, tuple[str, ...]]:
    """The network of a checkpoint, keeping its coarse masks; its configuration and class names.

    Raises:
        CheckpointError: the directory is no checkpoint, or its weights do not fit its configuration.
    """
    cfg, state, metadata = load_checkpoint(directory)
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.TRANSFINER.KEEP_COARSE = True
    cfg.merge_from_list(overrides or [])
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
    progress: Callable[[int], object] = int,
    observe: Callable[[Sample, Instances], object] | None = None,
) -> Evaluation:
    """Run a checkpoint over a set and measure it.

    Args:
        directory: of the checkpoint.
        samples: the set; its classes must be the checkpoint's.
        ratio: of the boundary's width to the image diagonal (0.02 for COCO and our scenes, 0.005 for Cityscapes).
        overrides: configuration keys and values, alternating.
        progress: told how many images are done.
        observe: shown each sample with what was found on it, to draw it for instance.

    Raises:
        ValueError: the set has other classes than the checkpoint.
    """
    network, cfg, names = load_for_evaluation(directory, device, overrides)
    if names != samples.class_names:
        raise ValueError(
            f"the checkpoint knows {', '.join(names)}; the set has {', '.join(samples.class_names)}"
        )
    resize = [ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
    truth, refined, coarse, seconds = TruthBuilder(names), [], [], 0.0
    for index in range(len(samples)):
        sample = samples[index]
        truth.add(sample)
        started_s = time.perf_counter()
        found = infer(network, to_network_input(sample, resize, cfg.INPUT.FORMAT))
        seconds += time.perf_counter() - started_s
        scores, classes = found.scores.numpy(), found.pred_classes.numpy()
        refined += detections(sample.image_id, _masks(found.pred_masks), scores, classes)
        coarse += detections(sample.image_id, _masks(found.pred_coarse_masks), scores, classes)
        if observe is not None:
            observe(sample, found)
        progress(index + 1)
    index_of_truth = truth.build()

    def measure(results: list[dict[str, Any]]) -> Metrics:
        return {
            "mask": mask_ap(index_of_truth, results),
            "boundary": boundary_ap(index_of_truth, results, ratio=ratio),
        }

    return Evaluation(measure(refined), measure(coarse), len(samples), seconds / max(1, len(samples)))


@torch.inference_mode()
def infer(network: nn.Module, record: dict[str, Any]) -> Instances:
    """Detections of one network input, on the CPU."""
    return network([record])[0]["instances"].to("cpu")


def _masks(masks: torch.Tensor) -> np.ndarray:
    return masks.numpy().astype(bool)
