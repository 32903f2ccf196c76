"""The parts of a training run, built from the keys ``TRAINING`` and ``SOLVER`` of its configuration.

They are the network with its starting weights (random, ImageNet's, another checkpoint's); one training step: losses of
a batch, perhaps in parts, gradients over all processes, clipping, the optimiser; the learning rate over iterations or
minutes; the moving average of the weights.

Losses that are means over images have the same gradients for any number of parts or processes. Means over regions (the
mask losses) are averaged over the parts instead, as DDP averages them over processes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver.build import get_default_optimizer_params
from torch import Tensor, nn

from model.checkpoints.checkpoint import Checkpoint, load_checkpoint
from model.config import add_transfiner_config, find_config
from model.network import build_network
from training.engine import distributed as processes

logger = logging.getLogger(__name__)
Batch = list[dict[str, Any]]
State = dict[str, Tensor]


def add_training_config(cfg: CfgNode) -> None:
    """Add the keys under ``TRAINING``; one comment each. They are not part of a checkpoint's network."""
    cfg.TRAINING = node = CfgNode()
    # Where weights start: "imagenet" (packaged backbone weights), a checkpoint directory, or "" for random ones.
    node.INIT = ""
    # "AdamW" or "SGD" (momentum and weight decay from SOLVER).
    node.OPTIMIZER = "AdamW"
    # Learning rate of a pretrained backbone relative to SOLVER.BASE_LR.
    node.BACKBONE_LR_FACTOR = 1.0
    # "cosine", or "steps" (SOLVER.STEPS and SOLVER.GAMMA); both after the warm-up of SOLVER.WARMUP_*.
    node.SCHEDULE = "cosine"
    # The cosine ends at this fraction of SOLVER.BASE_LR.
    node.FINAL_LR_FACTOR = 0.01
    # Wall-clock budget in minutes (0: none). The schedule follows time or SOLVER.MAX_ITER, whichever is further.
    node.MAX_MINUTES = 0.0
    # Weights that are saved and evaluated are an exponential moving average (0: the last ones).
    node.EMA_DECAY = 0.998
    # Parts that a process's share of a batch is learned from one after another (1: at once); less memory, same batch.
    node.ACCUMULATE = 1
    # Arithmetic of the forward pass: "fp32", "bf16" (CPU or GPU), or "fp16" with scaled gradients (GPU).
    node.PRECISION = "fp32"
    # Images that are damaged or not there: "skip" (counted and logged) or "fatal".
    node.MISSING_IMAGES = "fatal"
    # Size in pixels of generated scenes.
    node.SCENE_WIDTH = 384
    node.SCENE_HEIGHT = 288
    # Also mirror top to bottom, for pictures that have no up and down (INPUT.RANDOM_FLIP mirrors left to right).
    node.FLIP_VERTICAL = False
    # Threads of the arithmetic (0: torch's default).
    node.THREADS = 0
    # Iterations between lines of the log.
    node.LOG_PERIOD = 20


def get_training_config(name: str | Path) -> CfgNode:
    """The configuration of a training run from ``model/configs/`` or any YAML file; see ``model.config.get_config``.

    Raises:
        FileNotFoundError: no such configuration.
        KeyError: an unknown key.
    """
    cfg = get_cfg()
    add_transfiner_config(cfg)
    add_training_config(cfg)
    cfg.merge_from_file(str(find_config(name)))
    return cfg


def network_config(cfg: CfgNode) -> CfgNode:
    """A copy without ``TRAINING``: what a checkpoint stores and a predictor reads."""
    copy: CfgNode = cfg.clone()
    copy.defrost()
    copy.pop("TRAINING", None)
    return copy


def build_for_training(cfg: CfgNode) -> nn.Module:
    """Build the network and give it the starting weights of ``TRAINING.INIT``.

    Raises:
        ValueError: ``TRAINING.INIT`` is "imagenet" and the backbone has no packaged ImageNet weights.
        CheckpointError: ``TRAINING.INIT`` names a directory that is no checkpoint.
        ValueError: none of its weights fits this network.
    """
    torch.manual_seed(max(cfg.SEED, 0))
    network = build_network(cfg)
    start = cfg.TRAINING.INIT
    if start == "imagenet":
        _start_from_imagenet(network, cfg)
    elif start:
        start_from(network, usable_state(load_checkpoint(Path(start)), cfg))
    suit_device(network, cfg)
    return network


def usable_state(checkpoint: Checkpoint, cfg: CfgNode) -> dict[str, Tensor]:
    """The checkpoint's weights, without its decoder's last layer where `DECODER` gives its output another meaning."""
    if checkpoint.cfg.MODEL.TRANSFINER.DECODER == cfg.MODEL.TRANSFINER.DECODER:
        return checkpoint.state
    return {key: value for key, value in checkpoint.state.items() if ".encoder.conv_r1.2." not in key}


def start_from(network: nn.Module, state: State) -> None:
    """Load those weights of a state that have the network's names and shapes.

    Raises:
        ValueError: not one of the network's weights is in the state.
    """
    own_state = network.state_dict()
    fitting = {key: value for key, value in state.items() if key in own_state and own_state[key].shape == value.shape}
    if not fitting:
        raise ValueError(
            f"none of the {len(own_state)} weights of the network is in the checkpoint; is it of another architecture?"
        )
    network.load_state_dict(fitting, strict=False)
    for problem, keys in (
        ("start untrained", own_state.keys() - fitting.keys()),
        ("are not used", state.keys() - fitting.keys()),
    ):
        if keys:
            logger.warning("%d weights %s: %s", len(keys), problem, ", ".join(sorted(keys)))


def _start_from_imagenet(network: nn.Module, cfg: CfgNode) -> None:
    from model.backbones.efficientnet_lite import EfficientNetLite, load_imagenet_weights

    bottom_up = getattr(network.backbone, "bottom_up", None)
    if not isinstance(bottom_up, EfficientNetLite):
        raise ValueError(
            f'TRAINING.INIT is "imagenet", but {cfg.MODEL.BACKBONE.NAME} has no packaged ImageNet weights; '
            'use build_efficientnet_lite_fpn_backbone, a checkpoint directory, or "" for random weights'
        )
    load_imagenet_weights(bottom_up)


def suit_device(network: nn.Module, cfg: CfgNode) -> None:
    """Choose the memory layout in which ``MODEL.DEVICE`` is fastest; values do not change."""
    if cfg.MODEL.DEVICE == "cpu":
        _channels_last_backbone(network)


def _channels_last_backbone(network: nn.Module) -> None:
    """Lay the backbone out channels-last, and return contiguous features.

    On a CPU, depthwise convolutions run several times faster channels-last; the backward pass of dense 3x3 ones twice
    slower.
    """
    bottom_up = getattr(network.backbone, "bottom_up", None)
    if bottom_up is None:
        return

    def contiguous(_: nn.Module, __: tuple[Tensor, ...], features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: feature.contiguous() for name, feature in features.items()}

    bottom_up.to(memory_format=torch.channels_last)
    bottom_up.register_forward_hook(contiguous)


class LearningStep:
    """One training step: forward, backward, clipping and the optimiser, for one batch."""

    def __init__(self, cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if cfg.TRAINING.ACCUMULATE < 1:
            raise ValueError(f"TRAINING.ACCUMULATE is {cfg.TRAINING.ACCUMULATE}; give 1 or more parts")
        self.model, self.optimizer, self.parts = model, optimizer, cfg.TRAINING.ACCUMULATE
        self.device_type = torch.device(cfg.MODEL.DEVICE).type
        self.dtype = checked_precision(cfg.TRAINING.PRECISION, self.device_type)
        # Does nothing unless it is enabled.
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=self.dtype == torch.float16)
        limit = cfg.SOLVER.CLIP_GRADIENTS
        self.largest_norm = limit.CLIP_VALUE if limit.ENABLED else math.inf

    def __call__(self, batch: Batch, on_divergence: Callable[[dict[str, float]], object]) -> dict[str, float]:
        """Update the weights by a batch; returns losses and the norm of the gradients, means over all processes.

        `on_divergence` is called with losses that are not finite, before any weight changes.
        """
        self.optimizer.zero_grad(set_to_none=True)
        values = processes.mean_over_processes(self._gradients(batch))
        if not math.isfinite(values["total"]):
            on_divergence(values)
        processes.average_gradients(self.model)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.largest_norm)
        self.scaler.step(self.optimizer)  # left out, and the scale lowered, where scaled gradients overflowed
        self.scaler.update()
        return values | {"grad_norm": float(norm)}

    def _gradients(self, batch: Batch) -> dict[str, float]:
        values: dict[str, float] = {}
        for part in in_parts(batch, self.parts):
            share = len(part) / len(batch)
            with torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None):
                losses = self.model(part)
                total = torch.stack([loss.float() for loss in losses.values()]).sum()
            self.scaler.scale(total * share).backward()
            for name, loss in ({"total": total} | losses).items():
                values[name] = values.get(name, 0.0) + share * float(loss.detach())
        return values


def in_parts(batch: Batch, parts: int) -> list[Batch]:
    """Split a batch into at most `parts` lists of nearly equal length, none empty."""
    count = min(parts, len(batch))
    edges = [len(batch) * place // count for place in range(count + 1)]
    return [batch[start:end] for start, end in pairwise(edges)]


DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def checked_precision(name: str, device_type: str) -> torch.dtype | None:
    """The type that a run's forward pass is cast to, None for fp32; weights, gradients and the optimiser stay fp32.

    Raises:
        ValueError: an unknown name, or fp16 on a CPU: its gradients vanish unless they are scaled.
    """
    if name not in DTYPES or (name == "fp16" and device_type != "cuda"):
        usable = "fp32, bf16 or fp16" if device_type == "cuda" else "fp32 or bf16"
        raise ValueError(f"TRAINING.PRECISION is {name!r}; on {device_type} choose {usable}")
    return DTYPES[name]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW or SGD; norms and biases without weight decay, the backbone's bottom-up part at its own rate.

    Raises:
        ValueError: ``TRAINING.OPTIMIZER`` is neither.
    """
    without_decay = {"weight_decay": 0.0}
    groups: list[dict[str, Any]] = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=0.0,
        lr_factor_func=lambda name: cfg.TRAINING.BACKBONE_LR_FACTOR if name.startswith("backbone.bottom_up") else 1.0,
        overrides={"bias": without_decay, "in_proj_bias": without_decay},
    )
    for group in groups:
        group["lr_at_start"] = group["lr"]
    if cfg.TRAINING.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR)
    if cfg.TRAINING.OPTIMIZER == "SGD":
        return torch.optim.SGD(
            groups, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV
        )
    raise ValueError(f"TRAINING.OPTIMIZER is {cfg.TRAINING.OPTIMIZER!r}; choose AdamW or SGD")


def run_fraction(cfg: CfgNode, iteration: int, elapsed_s: float) -> float:
    """Fraction of the run that is done, 0..1, by iterations or by the clock, whichever is larger."""
    by_clock = elapsed_s / (60 * cfg.TRAINING.MAX_MINUTES) if cfg.TRAINING.MAX_MINUTES > 0 else 0.0
    return min(1.0, max(iteration / max(1, cfg.SOLVER.MAX_ITER), by_clock))


def lr_factor(cfg: CfgNode, iteration: int, fraction: float) -> float:
    """Factor of the starting learning rate: warm-up times decay over the run's fraction.

    Raises:
        ValueError: ``TRAINING.SCHEDULE`` or ``SOLVER.WARMUP_METHOD`` has an unknown name.
    """
    return _warm_up(cfg, iteration) * _decay(cfg, fraction)


def _warm_up(cfg: CfgNode, iteration: int) -> float:
    """Rise from ``SOLVER.WARMUP_FACTOR`` to 1 over ``SOLVER.WARMUP_ITERS``: linearly, or at once at their end."""
    progress = min(1.0, iteration / max(1, cfg.SOLVER.WARMUP_ITERS))
    if cfg.SOLVER.WARMUP_METHOD == "linear":
        return float(cfg.SOLVER.WARMUP_FACTOR * (1 - progress) + progress)
    if cfg.SOLVER.WARMUP_METHOD == "constant":
        return 1.0 if progress >= 1 else float(cfg.SOLVER.WARMUP_FACTOR)
    raise ValueError(f"SOLVER.WARMUP_METHOD is {cfg.SOLVER.WARMUP_METHOD!r}; choose linear or constant")


def _decay(cfg: CfgNode, fraction: float) -> float:
    """Half a cosine, or ``SOLVER.GAMMA`` once more from each of ``SOLVER.STEPS`` on (iterations of MAX_ITER)."""
    if cfg.TRAINING.SCHEDULE == "cosine":
        low = cfg.TRAINING.FINAL_LR_FACTOR
        return float(low + (1 - low) * 0.5 * (1 + math.cos(math.pi * fraction)))
    if cfg.TRAINING.SCHEDULE == "steps":
        iteration = fraction * cfg.SOLVER.MAX_ITER + 1e-6  # the fraction is a rounded quotient of whole iterations
        return float(cfg.SOLVER.GAMMA ** sum(step <= iteration for step in cfg.SOLVER.STEPS))
    raise ValueError(f"TRAINING.SCHEDULE is {cfg.TRAINING.SCHEDULE!r}; choose cosine or steps")


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group's own starting rate; returns the highest."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr_at_start"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)


class MovingAverage:
    """Exponential moving average of a model's state; quick to follow at first, slower as the run grows."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the model's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, values = [], []
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                averages.append(self.state[name])
                values.append(value)
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)
