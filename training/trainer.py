"""The training loop: any detectron2 model, any of our sets, stoppable and resumable at every iteration."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from model.checkpoint import save_checkpoint
from training import processes
from training.config import network_config
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
        folder: where the state, the losses and the checkpoint go.
        name: of the checkpoint.
        resume: go on from the folder's state.
    """

    def __init__(
        self, cfg: CfgNode, model: nn.Module, folder: Path, *, name: str = "model", resume: bool = False
    ) -> None:
        self.cfg, self.model, self.folder, self.name = cfg, model, folder, name
        self.optimizer = build_optimizer(cfg, model)
        self.average = MovingAverage(model, cfg.TRAINING.EMA_DECAY) if cfg.TRAINING.EMA_DECAY > 0 else None
        self.progress = load_state(folder, model, self.optimizer, self.average) if resume else Progress()
        self.stop_requested = self._stop_here = False
        self.samples = training_samples(cfg)
        if len(self.samples.class_names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise ValueError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, the training sets have "
                f"{len(self.samples.class_names)}: {', '.join(self.samples.class_names)}"
            )

    def train(self) -> Progress:
        """Run until the schedule ends or someone asks to stop; the state is saved in either case.

        Raises:
            TrainingDiverged: a loss became NaN or infinite.
        """
        if self.cfg.TRAINING.THREADS > 0:
            torch.set_num_threads(self.cfg.TRAINING.THREADS)
        loader = training_loader(self.samples, self.cfg, first_iteration=self.progress.iteration)
        self.model.train()
        processes.share_start(self.model)
        with self._stopping_on_signals(), self._log() as log:
            self._loop(iter(loader), log)
        self.save()
        if self.stop_requested:
            logger.warning(
                "stopped after iteration %d; the same command with --resume goes on", self.progress.iteration
            )
        return self.progress

    def _log(self) -> AbstractContextManager[RunLog | None]:
        return RunLog(self.folder, self.cfg.TRAINING.LOG_PERIOD) if processes.rank() == 0 else nullcontext()

    def _loop(self, batches: Iterator[list[dict[str, Any]]], log: RunLog | None) -> None:
        before_s, started_s = self.progress.elapsed_s, time.monotonic()
        fraction = run_fraction(self.cfg, self.progress.iteration, before_s)
        while fraction < 1 and not self.stop_requested:  # both are the same on every process
            lr = set_lr(self.optimizer, lr_factor(self.cfg, self.progress.iteration, fraction))
            losses = self._step(next(batches))
            self.progress.iteration += 1
            elapsed_s, stop = processes.agree(before_s + time.monotonic() - started_s, self._stop_here)
            self.progress.elapsed_s, self.stop_requested = elapsed_s, bool(stop)
            fraction = run_fraction(self.cfg, self.progress.iteration, self.progress.elapsed_s)
            if log is not None:
                log.record(self.progress.iteration, losses, lr, fraction, self.progress.elapsed_s)
            if self.progress.iteration % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0:
                self.save()

    def _step(self, batch: list[dict[str, Any]]) -> dict[str, float]:
        with EventStorage(self.progress.iteration):  # detectron2's heads log into one
            losses = self.model(batch)
        total = torch.stack(list(losses.values())).sum()
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        values = processes.mean_over_processes({"total": float(total.detach())} | values)
        if not math.isfinite(values["total"]):
            self._diverged(batch, values)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        processes.average_gradients(self.model)
        limit = self.cfg.SOLVER.CLIP_GRADIENTS
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), limit.CLIP_VALUE if limit.ENABLED else math.inf
        )
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        return values | {"grad_norm": float(norm)}

    def _diverged(self, batch: list[dict[str, Any]], values: dict[str, float]) -> None:
        path = self.folder / f"diverged_batch_{processes.rank()}.pt"
        torch.save(
            {"iteration": self.progress.iteration, "batch": batch, "model": self.model.state_dict()}, path
        )
        raise TrainingDiverged(
            f"losses after iteration {self.progress.iteration} are not finite: {values}. The batch and the weights "
            f"are in {path}; lower SOLVER.BASE_LR or the clipping, and resume from the last state."
        )

    def save(self) -> Path:
        """Write the state and, beside it, a checkpoint of the averaged weights; returns the checkpoint."""
        path = self.folder / "checkpoint"
        if processes.rank() != 0:
            return path
        save_state(self.folder, self.progress, self.model, self.optimizer, self.average)
        seen = self.progress.iteration * self.cfg.SOLVER.IMS_PER_BATCH
        training = {
            "iterations": self.progress.iteration,
            "images_seen": seen,
            "minutes": round(self.progress.elapsed_s / 60, 1),
            "sets": list(self.cfg.DATASETS.TRAIN),
            "init": self.cfg.TRAINING.INIT or "random",
            "config": self.cfg.TRAINING.dump(),
        }
        metadata = {
            "name": self.name,
            "version": f"{self.name}-{self.progress.iteration}",
            "classes": list(self.samples.class_names),
            "preset": "released",
            "training": training,
        }
        weights = self.average.state if self.average is not None else self.model.state_dict()
        save_checkpoint(path, network_config(self.cfg), weights, metadata, half=True, overwrite=True)
        return path

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        def stop(number: int, _: FrameType | None) -> None:
            logger.warning("%s: finishing this iteration, then saving", signal.Signals(number).name)
            self._stop_here = True

        previous = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in previous.items():
                signal.signal(one, handler)
