"""The training loop: any detectron2 model, any of our sets, stoppable and resumable at every iteration."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from training.mapper import training_loader, training_samples
from training.run_log import RunLog
from training.run_state import Progress, load_state, save_state
from training.schedule import MovingAverage, build_optimizer, lr_factor, run_fraction, set_lr

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):  # noqa: N818 - says what happened
    """A loss was not finite. The batch is saved beside the run's state."""


class Trainer:
    """Trains a model in a folder.

    Args:
        cfg: from `get_training_config`.
        model: called with a list of network inputs, returns a dict of losses in training.
        folder: where the state, the losses and the pictures go.
        resume: go on from the folder's state.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, folder: Path, *, resume: bool = False) -> None:
        self.cfg, self.model, self.folder = cfg, model, folder
        self.optimizer = build_optimizer(cfg, model)
        self.average = MovingAverage(model, cfg.TRAINING.EMA_DECAY) if cfg.TRAINING.EMA_DECAY > 0 else None
        self.progress = load_state(folder, model, self.optimizer, self.average) if resume else Progress()
        self.stop_requested = False

    def train(self) -> Progress:
        """Run until the schedule ends or someone asks to stop; the state is saved in either case.

        Raises:
            TrainingDiverged: a loss became NaN or infinite.
        """
        if self.cfg.TRAINING.THREADS > 0:
            torch.set_num_threads(self.cfg.TRAINING.THREADS)
        loader = training_loader(training_samples(self.cfg), self.cfg, first_iteration=self.progress.iteration)
        self.model.train()
        with self._stopping_on_signals(), RunLog(self.folder, self.cfg.TRAINING.LOG_PERIOD) as log:
            self._loop(iter(loader), log)
        self.save()
        if self.stop_requested:
            logger.warning("stopped after iteration %d; the same command with --resume goes on", self.progress.iteration)
        return self.progress

    def _loop(self, batches: Iterator[list[dict[str, Any]]], log: RunLog) -> None:
        before_s, started_s = self.progress.elapsed_s, time.monotonic()
        fraction = run_fraction(self.cfg, self.progress.iteration, before_s)
        while fraction < 1 and not self.stop_requested:
            lr = set_lr(self.optimizer, lr_factor(self.cfg, self.progress.iteration, fraction))
            losses = self._step(next(batches))
            self.progress.iteration += 1
            self.progress.elapsed_s = before_s + time.monotonic() - started_s
            fraction = run_fraction(self.cfg, self.progress.iteration, self.progress.elapsed_s)
            log.record(self.progress.iteration, losses, lr, fraction, self.progress.elapsed_s)
            if self.progress.iteration % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0:
                self.save()

    def _step(self, batch: list[dict[str, Any]]) -> dict[str, float]:
        losses = self.model(batch)
        total = torch.stack(list(losses.values())).sum()
        if not math.isfinite(float(total)):
            self._diverged(batch, losses)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        limit = self.cfg.SOLVER.CLIP_GRADIENTS
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit.CLIP_VALUE if limit.ENABLED else math.inf)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        values = {name: float(loss) for name, loss in losses.items()}
        return {"total": float(total)} | values | {"grad_norm": float(norm)}

    def _diverged(self, batch: list[dict[str, Any]], losses: dict[str, torch.Tensor]) -> None:
        path = self.folder / "diverged_batch.pt"
        torch.save({"iteration": self.progress.iteration, "batch": batch, "model": self.model.state_dict()}, path)
        values = {name: float(loss) for name, loss in losses.items()}
        raise TrainingDiverged(
            f"losses after iteration {self.progress.iteration} are not finite: {values}. The batch and the weights "
            f"are in {path}; lower SOLVER.BASE_LR or the clipping, and resume from the last state."
        )

    def save(self) -> Path:
        """Write the state now."""
        return save_state(self.folder, self.progress, self.model, self.optimizer, self.average)

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        def stop(number: int, _: FrameType | None) -> None:
            logger.warning("%s: finishing this iteration, then saving", signal.Signals(number).name)
            self.stop_requested = True

        previous = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in previous.items():
                signal.signal(one, handler)
