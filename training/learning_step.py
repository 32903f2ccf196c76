"""One step of learning: losses of a batch, perhaps in parts, gradients over all processes, clipping, the optimiser.

Losses that are means over images give the gradients of the whole batch whatever the number of parts or processes. Means
over regions (the mask losses) are averaged part by part instead, as DDP averages them process by process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from training import processes
from training.mixed_precision import Precision

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

        `diverged` is told losses that are not finite, before any weight changes.
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
