"""The predictor: a model with all that its use needs, so that callers handle only images and instances.

Shape shorthand in this module: N images, R instances of an image, H x W an image's size in pixels.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances
from PIL import Image
from torch import Tensor, nn

from model.checkpoints.checkpoint import load_checkpoint
from model.checkpoints.state_dict import load_weights
from model.config import override
from model.inference.composition import compose
from model.inference.precision import choose_precision, to_bf16
from model.instance import Instance, ProbabilityPatch
from model.network import build_network

# A CPU is bound by arithmetic, so batches only pad there (but see `map_in_threads`); a GPU is not.
BATCH_SIZE_GPU = 4
# Images on a CPU; each holds activations of its own, like the images of a batch on a GPU.
MOST_AT_A_TIME = 4
Piece = TypeVar("Piece")
Result = TypeVar("Result")


class InputSettings(NamedTuple):
    """How an image becomes the network's input: `cfg.INPUT`."""

    channel_order: str  # "RGB" or "BGR", as the network was trained
    short_edge_px: int
    long_edge_limit_px: int


class Predictor:
    """Images in, instances out. Holds no state between calls and none outside itself.

    Args:
        model: a network with detectron2's interface; moved to `device` and switched to evaluation.
        labels: class names in the order of the network's class numbers.
        mixed_precision: run in half precision where that is safe (GPUs only).
        precision: in which `model` computes, as information; see `model.inference.precision`.
        composes: whether masks are made to agree with each other and the image; see `model.inference.composition`.

    Raises:
        ValueError: an unknown channel order, or a batch size below one.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: Sequence[str],
        version: str,
        input_settings: InputSettings,
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 1,
        mixed_precision: bool = False,
        precision: str = "fp32",
        composes: bool = False,
    ) -> None:
        if input_settings.channel_order not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {input_settings.channel_order!r}, expected 'RGB' or 'BGR'")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        self.device = torch.device(device)
        self.labels = tuple(labels)
        self.version = version
        self.input_settings = input_settings
        self.batch_size = batch_size
        self.mixed_precision = mixed_precision
        self.precision = "mixed" if mixed_precision else precision
        self.composes = composes
        self._model = model.to(self.device).eval()

    @classmethod
    def from_checkpoint(
        cls,
        directory: Path | str,
        *,
        device: str = "auto",
        score_threshold: float | None = None,
        max_instances: int | None = None,
        node_budget: int | None = None,
        batch_size: int | None = None,
        mixed_precision: bool | None = None,
        precision: str = "fp32",
        overrides: Sequence[str] = (),
    ) -> Predictor:
        """Build the network of a checkpoint directory and load its weights.

        Args:
            directory: see `model.checkpoints.checkpoint`.
            device: `auto` (the first GPU if there is one), `cpu`, `cuda`, `cuda:1`, ...
            score_threshold: weaker detections are dropped before their masks are computed; the checkpoint's
                threshold if None.
            max_instances: best detections of an image to keep; the checkpoint's if None.
            node_budget: most nodes of an image that are refined, 0 for all; the checkpoint's if None.
            batch_size: images at a time; 1 on a CPU, more on a GPU if None.
            mixed_precision: on for GPUs if None.
            precision: `fp32`, `bf16` or `auto` on a CPU, see `model.inference.precision.choose_precision`.
            overrides: configuration keys and values, alternating.

        Raises:
            CheckpointError: the directory is no complete checkpoint, or its weights do not fit its config.
            ValueError: an unknown or absent device, a threshold outside [0, 1], a negative number, or a precision that
                this device or network has not.
        """
        place = choose_device(device)
        cfg, state, metadata = load_checkpoint(directory)
        chosen_precision = choose_precision(precision, place, metadata)
        cfg = _inference_config(cfg, place, score_threshold, max_instances, node_budget)
        override(cfg, overrides)
        model = build_network(cfg)
        load_weights(model, state, source=str(directory))
        if chosen_precision == "bf16":
            to_bf16(model.eval())
        on_gpu = place.type == "cuda"
        return cls(
            model,
            metadata["classes"],
            str(metadata["version"]),
            InputSettings(cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
            device=place,
            batch_size=batch_size if batch_size is not None else (BATCH_SIZE_GPU if on_gpu else 1),
            mixed_precision=on_gpu if mixed_precision is None else mixed_precision,
            precision=chosen_precision,
            composes=cfg.MODEL.TRANSFINER.TEST_COMPOSE,
        )

    @functools.cached_property
    def weights_bytes(self) -> int:
        """Memory of the network's weights and buffers on its device."""
        tensors = (*self._model.parameters(), *self._model.buffers())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def images_at_once(self) -> int:
        """The best number of images for one call, where there are many: a batch, or as many as run side by side."""
        return max(self.batch_size, MOST_AT_A_TIME)

    def smaller(self, divisor: int) -> Predictor:
        """The same network looking at images of 1/divisor of the edge; shares all weights."""
        order, short_px, long_px = self.input_settings
        predictor = copy.copy(self)
        predictor.input_settings = InputSettings(order, max(1, short_px // divisor), max(1, long_px // divisor))
        return predictor

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Instance]]:
        """Detect and outline objects.

        Args:
            images: N uint8 arrays, H x W x 3, RGB, already turned as their EXIF says; sizes may differ.

        Returns:
            For each image, in order, its instances by falling score.

        Raises:
            ValueError: an image is not such an array; the message gives its number, type and shape.
        """
        for number, image in enumerate(images):
            _check_image(image, number)
        # Images of like size share a batch, so that little of it is padding.
        order = sorted(range(len(images)), key=lambda i: self._input_size(images[i]))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

        def detect(batch: list[int]) -> list[list[Instance]]:
            outputs = self._run([self._prepare(images[i]) for i in batch])
            instances = [self._instances(output["instances"]) for output in outputs]
            if not self.composes:
                return instances
            return [compose(images[i], r, self._input_size(images[i])) for i, r in zip(batch, instances, strict=True)]

        results = chain.from_iterable(map_in_threads(detect, batches, self.device))
        by_number = dict(zip(order, results, strict=True))
        return [by_number[i] for i in range(len(images))]

    def _input_size(self, image_rgb: np.ndarray) -> tuple[int, int]:
        """Height and width at which the network sees an image."""
        settings = self.input_settings
        height, width = ResizeShortestEdge.get_output_shape(
            *image_rgb.shape[:2], settings.short_edge_px, settings.long_edge_limit_px
        )
        return max(height, 1), max(width, 1)

    def _prepare(self, image_rgb: np.ndarray) -> dict[str, Any]:
        """The network's input as detectron2's DefaultPredictor makes it, without drawing random numbers."""
        height, width = image_rgb.shape[:2]
        new_height, new_width = self._input_size(image_rgb)
        resized_image = Image.fromarray(image_rgb).resize((new_width, new_height), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized_image).transpose(2, 0, 1)
        if self.input_settings.channel_order == "BGR":
            pixels = pixels[::-1]
        tensor = torch.from_numpy(np.array(pixels, order="C"))
        return {"image": tensor, "height": height, "width": width}

    def _run(self, inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        precision: AbstractContextManager[Any] = (
            torch.autocast(self.device.type, dtype=torch.float16) if self.mixed_precision else nullcontext()
        )
        try:
            with torch.inference_mode(), precision:
                outputs: list[dict[str, Instances]] = self._model(inputs)
        except torch.OutOfMemoryError:
            if len(inputs) == 1:
                raise
        else:
            return outputs
        # Outside the handler, which would keep the failed batch's tensors alive. One crowded image must not fail
        # its neighbours.
        return [output for single in inputs for output in self._run([single])]

    def _instances(self, instances: Instances) -> list[Instance]:
        instances = instances.to("cpu")
        scores: Tensor = instances.scores.float()
        boxes = [(box[0], box[1], box[2], box[3]) for box in instances.pred_boxes.tensor.float().tolist()]
        masks = instances.pred_masks.numpy()
        classes = instances.pred_classes.tolist()
        uncertainty = (
            instances.uncertainty.float().clamp(0, 1).tolist()
            if instances.has("uncertainty")
            else [0.0] * len(instances)
        )
        # Probabilities cover the box, unless the network says where they lie.
        places = instances.patch_boxes.float().tolist() if instances.has("patch_boxes") else boxes
        patches = instances.mask_probabilities.float().numpy() if instances.has("mask_probabilities") else None
        nodes = instances.incoherent_nodes.tolist() if instances.has("incoherent_nodes") else [None] * len(instances)
        return [
            Instance(
                box_xyxy=boxes[r],
                label=self.labels[classes[r]],
                score=float(scores[r]),
                mask_hw=masks[r],
                uncertainty=uncertainty[r],
                incoherent_nodes=None if nodes[r] is None else int(nodes[r]),
                probabilities=None if patches is None else ProbabilityPatch(patches[r], tuple(places[r])),
            )
            for r in scores.argsort(descending=True, stable=True).tolist()
        ]


def choose_device(name: str) -> torch.device:
    """The torch device for `auto` or a device's name.

    Raises:
        ValueError: the name is not a device, or names a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}, expected auto, cpu, cuda or cuda:NUMBER") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {name!r}, but torch sees {torch.cuda.device_count()} GPUs; use auto or cpu")
    return device


def _inference_config(
    cfg: CfgNode,
    device: torch.device,
    score_threshold: float | None,
    max_instances: int | None,
    node_budget: int | None,
) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = str(device)
    options: list[tuple[str, float | None, float, float, str]] = [
        ("score_threshold", score_threshold, 0, 1, "MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
        ("max_instances", max_instances, 1, math.inf, "TEST.DETECTIONS_PER_IMAGE"),
        ("node_budget", node_budget, 0, math.inf, "MODEL.TRANSFINER.TEST_NODE_BUDGET"),
    ]
    for name, value, low, high, key in options:
        if value is not None:
            if not low <= value <= high:
                limits = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
                raise ValueError(f"{name} is {value}, expected a number {limits}")
            override(cfg, [key, value])
    return cfg


def _check_image(image: np.ndarray, number: int) -> None:
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image {number} is a {type(image).__name__}, expected a numpy array of H x W x 3, uint8, RGB")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image {number} is {image.dtype} of shape {image.shape}, expected uint8, (H, W, 3), RGB")


def map_in_threads(
    work: Callable[[Piece], Result], pieces: Sequence[Piece], device: torch.device | str = "cpu"
) -> list[Result]:
    """`work` on each piece, in order; up to `MOST_AT_A_TIME` at once on a CPU where torch may use several threads.

    Most operations of a small network are too short to be split among threads, so two images on a thread each are done
    sooner than one after the other on two threads.

    Args:
        device: where the arithmetic is; elsewhere than on a CPU one piece follows the other.

    Raises:
        Exception: of the first piece that failed. Then, or when the caller is interrupted, no further piece is
            started; those that run already go on to their end.
    """
    threads = torch.get_num_threads()
    at_once = min(len(pieces), threads, MOST_AT_A_TIME)
    if at_once < 2 or torch.device(device).type != "cpu":
        return [work(piece) for piece in pieces]

    def with_its_share(piece: Piece) -> Result:
        torch.set_num_threads(threads // at_once)
        return work(piece)

    pool = ThreadPoolExecutor(at_once, thread_name_prefix="image")
    try:
        return list(pool.map(with_its_share, pieces))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        # The number is a thread's own, but new threads begin with the one that was set last.
        torch.set_num_threads(threads)
