"""Class rows of a frozen detector: one linear classifier a class and stride, learned from cached cells.

A new class starts from the known class that looks most like it (a balloon from a sports ball) and is held near it, so
that a few photographs are enough.

Loss: quality focal loss (Li et al., "Generalized Focal Loss", NeurIPS 2020), the one that NanoDet was trained with.

Shape shorthand: N cells, C = 128 channels, J classes to learn, K classes that the detector knows, L strides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.detectors.nanodet import STRIDES, NanoDet
from training.fewshot.cells import Cells

STEPS, LOSS_PERIOD = 200, 5
LEARNING_RATE = 0.02
#: Pull of the rows to where they started, beside a loss that is a mean over the positive cells.
PULL = 1e-2


@dataclass(frozen=True, slots=True)
class ClassRows:
    """Linear classifiers: weights (L, J, C) and biases (L, J)."""

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor, level: Tensor) -> Tensor:
        """(N, J) of features (N, C) whose strides have the places `level`."""
        values = torch.empty(len(features), self.bias.shape[1])
        for number in range(len(STRIDES)):
            here = level == number
            values[here] = features[here].float() @ self.weight[number].T + self.bias[number]
        return values


def known_rows(detector: NanoDet) -> ClassRows:
    """The rows of all classes that a detector knows."""
    count = detector.num_classes
    weights = [detector.get_parameter(f"outputs.{level}.weight") for level in range(len(STRIDES))]
    biases = [detector.get_parameter(f"outputs.{level}.bias") for level in range(len(STRIDES))]
    return ClassRows(
        torch.stack([weight[:count, :, 0, 0].detach() for weight in weights]),
        torch.stack([bias[:count].detach() for bias in biases]),
    )


def similar_classes(cells: Cells, sources: Sequence[int | None]) -> list[int]:
    """For each class to learn the known class that scores highest on its objects; `sources` are those given."""
    similar = []
    for label, source in enumerate(sources):
        objects = cells.targets[:, label] >= 0.5
        scores = cells.known_scores[objects if objects.any() else slice(None)].float().mean(0)
        similar.append(int(scores.argmax()) if source is None else source)
    return similar


def fit_rows(cells: Cells, start: ClassRows, *, on_loss: Callable[[int, float], object] | None = None) -> ClassRows:
    """Learn J rows from cells, held near the rows they start from. A class without objects keeps its rows.

    Args:
        on_loss: told the step and its loss, every `LOSS_PERIOD` steps.
    """
    present = (cells.targets > 0).any(0)
    weight = torch.zeros_like(start.weight, requires_grad=True)
    bias = torch.zeros_like(start.bias, requires_grad=True)
    levels = [_level(cells, number) for number in range(len(STRIDES))]
    positives = (cells.targets > 0).sum().clamp(min=1)
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        loss = PULL * (weight**2).sum()
        for number, (features, targets, weights) in enumerate(levels):
            logits = features @ (start.weight[number] + weight[number]).T + start.bias[number] + bias[number]
            loss = loss + quality_focal_loss(logits, targets, weights * present) / positives
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if on_loss is not None and (step + 1) % LOSS_PERIOD == 0:
            on_loss(step + 1, float(loss.detach()))
    moved = present[None]
    return ClassRows(start.weight + (weight * moved[..., None]).detach(), start.bias + (bias * moved).detach())


def quality_focal_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum over cells and classes; the target is the overlap that a cell's box has, 0 for background."""
    distance = (targets - logits.sigmoid()).abs() ** 2
    return (weights * distance * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum()


def _level(cells: Cells, number: int) -> tuple[Tensor, Tensor, Tensor]:
    here = cells.chosen(cells.level == number)
    return here.features.float(), here.targets, here.weights
