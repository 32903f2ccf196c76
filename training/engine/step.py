"""One step of learning: losses of a batch, perhaps in parts, gradients over all processes, clipping, the optimiser.

Losses that are means over images give the gradients of the whole batch whatever the number of parts or processes. Means
over regions (the mask losses) are averaged part by part instead, as DDP averages them process by process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from training import distributed as processes

Batch = list[dict[str, Any]]


class LearningStep:
    """Learns from one batch at a time.

    Args:
        cfg: of the run. model: called with a part of the batch, returns a dict of losses.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if cfg.TRAINING.ACCUMULATE < 1:
            raise ValueError(f"TRAINING.ACCUMULATE is {cfg.TRAINING.ACCUMULATE}; give 1 or more parts")
        self.model, self.optimizer, self.parts = model, optimizer, cfg.TRAINING.ACCUMULATE
        self.precision = Precision(cfg.TRAINING.PRECISION, cfg.MODEL.DEVICE)
        limit = cfg.SOLVER.CLIP_GRADIENTS
        self.largest_norm = limit.CLIP_VALUE if limit.ENABLED else math.inf

    def __call__(self, batch: Batch, diverged: Callable[[dict[str, float]], object]) -> dict[str, float]:
        """Change the weights; returns the losses and the norm of the gradients, means over all processes.

        `diverged` is called with losses that are not finite, before any weight changes.
        """
        self.optimizer.zero_grad(set_to_none=True)
        values = processes.mean_over_processes(self._gradients(batch))
        if not math.isfinite(values["total"]):
            diverged(values)
        processes.average_gradients(self.model)
        self.precision.unscale(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.largest_norm)
        self.precision.step(self.optimizer)
        return values | {"grad_norm": float(norm)}

    def _gradients(self, batch: Batch) -> dict[str, float]:
        values: dict[str, float] = {}
        for part in in_parts(batch, self.parts):
            share = len(part) / len(batch)
            with self.precision.forward():
                losses = self.model(part)
                total = torch.stack([loss.float() for loss in losses.values()]).sum()
            self.precision.backward(total * share)
            for name, loss in ({"total": total} | losses).items():
                values[name] = values.get(name, 0.0) + share * float(loss.detach())
        return values


def in_parts(batch: Batch, parts: int) -> list[Batch]:
    """The batch in at most `parts` runs of nearly equal length, none empty."""
    count = min(parts, len(batch))
    edges = [len(batch) * place // count for place in range(count + 1)]
    return [batch[start:end] for start, end in pairwise(edges)]


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The arithmetic of a run; weights, gradients and the optimiser stay fp32.

    Args:
        name: "fp32", "bf16", or "fp16" (GPU alone: its gradients vanish unless they are scaled).
        device: "cpu" or "cuda".

    Raises:
        ValueError: an unknown name, or fp16 on a CPU.
    """

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device_type = name, torch.device(device).type
        if name not in DTYPES or (name == "fp16" and self.device_type != "cuda"):
            usable = "fp32, bf16 or fp16" if self.device_type == "cuda" else "fp32 or bf16"
            raise ValueError(f"TRAINING.PRECISION is {name!r}; on {self.device_type} choose {usable}")
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=name == "fp16")

    def forward(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, DTYPES[self.name])

    def backward(self, loss: Tensor) -> None:
        """Gradients, multiplied by the present scale where there is one."""
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """True gradients, ready to be clipped."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimiser step, left out (and the scale lowered) where scaled gradients overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """For resuming: the scale; empty where nothing is scaled."""
        return dict(self.scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the scale."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
