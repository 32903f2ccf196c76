"""A run's folder: everything needed to go on exactly where it stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.files import replacing
from training.engine.optimizer import MovingAverage
from training.engine.step import Precision

STATE_FILE = "state.pt"


@dataclass
class TrainingProgress:
    """How far a run is: iterations done and seconds spent, over all its sittings."""

    iteration: int = 0
    elapsed_s: float = 0.0


def save_state(
    folder: Path,
    progress: TrainingProgress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    precision: Precision | None = None,
) -> Path:
    """Write the state atomically (a killed save leaves the previous one whole); returns its path."""
    path = folder / STATE_FILE
    state: dict[str, Any] = {
        "iteration": progress.iteration,
        "elapsed_s": progress.elapsed_s,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["rng_cuda"] = torch.cuda.get_rng_state()
    if precision is not None and (scale := precision.state_dict()):
        state["scale"] = scale
    if average is not None:
        state["average"] = average.state
        state["average_updates"] = average.updates
    with replacing(path) as unfinished:
        torch.save(state, unfinished)
    return path


def load_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    precision: Precision | None = None,
) -> TrainingProgress:
    """Restore everything `save_state` wrote, in place; what an older or another run did not write stays as it is.

    Raises:
        FileNotFoundError: the folder holds no state.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume: {path} does not exist; start without --resume")
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    if "rng_cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["rng_cuda"])
    if precision is not None and "scale" in state:
        precision.load_state_dict(state["scale"])
    if average is not None and "average" in state:
        for name, value in state["average"].items():
            average.state[name].copy_(value)
        average.updates = state["average_updates"]
    return TrainingProgress(state["iteration"], state["elapsed_s"])
