"""The training loop: any detectron2 model, any of our sets, stoppable and resumable at every iteration.

On Ctrl-C and SIGTERM the run finishes its iteration, saves, and ends. Its folder holds everything needed to resume
exactly where it stopped.

A run evaluates its saved checkpoint periodically and keeps the best one. The evaluation does not change the random
numbers of the training: a run with checks learns the same weights as one without.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from model.checkpoints.checkpoint import save_checkpoint
from model.checkpoints.metadata import read_metadata, update_metadata
from model.files import replacing, replacing_folder
from training.datasets import AnySet, CityscapesSet, open_configured_set
from training.datasets.loader import TrainingSamples, training_loader, training_samples
from training.engine import distributed as processes
from training.engine.build import (
    Batch,
    LearningStep,
    MovingAverage,
    build_optimizer,
    lr_factor,
    network_config,
    run_fraction,
    set_lr,
)
from training.engine.log import EVALUATIONS_FILE, PROGRESS_FILE, OnProgress, RunLog, RunProgress, write_progress
from training.evaluation.run import evaluate_checkpoint, keep_freed_memory

logger = logging.getLogger(__name__)
STATE_FILE = "state.pt"


class TrainingDiverged(RuntimeError):  # noqa: N818 - says what happened
    """A loss was not finite. The batch is saved beside the run's state."""


@dataclass
class TrainingProgress:
    """Iterations done and seconds spent by a run, resumed runs included."""

    iteration: int = 0
    elapsed_s: float = 0.0


class Trainer:
    """Trains a model in a folder.

    Args:
        model: called with a list of network inputs, returns a dict of losses in training.
        folder: where the state, the losses and the checkpoint go.
        samples: the training samples; by default the sets of `cfg.DATASETS.TRAIN`.
        on_progress: called on the first process with each progress that ``progress.json`` in the folder gets.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        folder: Path,
        *,
        name: str = "model",
        resume: bool = False,
        samples: TrainingSamples | None = None,
        metadata: dict[str, Any] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.cfg, self.model, self.folder, self.name = cfg, model, folder, name
        self.metadata, self.on_progress = metadata or {}, on_progress
        self.optimizer = build_optimizer(cfg, model)
        self.step = LearningStep(cfg, model, self.optimizer)
        self.average = MovingAverage(model, cfg.TRAINING.EMA_DECAY) if cfg.TRAINING.EMA_DECAY > 0 else None
        self.progress = TrainingProgress()
        if resume:
            self._load_state()
        self.stop, self.stop_requested = StopSignal(), False
        self.samples = samples if samples is not None else training_samples(cfg)
        if len(self.samples.class_names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise ValueError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, the training sets have "
                f"{len(self.samples.class_names)}: {', '.join(self.samples.class_names)}; set it to this "
                "number, or correct the categories (transfiner data check)"
            )
        self.checks = Checks(cfg, folder)

    def train(self) -> TrainingProgress:
        """Run until the schedule ends or a stop is requested; the state is saved in either case.

        Raises:
            TrainingDiverged: a loss became NaN or infinite.
        """
        torch.set_num_threads(self.cfg.TRAINING.THREADS or processes.threads_each())
        keep_freed_memory(self.cfg.MODEL.DEVICE)
        share = {"rank": processes.rank(), "processes": processes.process_count()}
        loader = training_loader(self.samples, self.cfg, first_iteration=self.progress.iteration, **share)
        self.model.train()
        processes.share_start(self.model)
        with self.stop, self._log() as log:
            try:
                self._loop(iter(loader), log)
                self.save()
                self._check(log, is_last=not self.stop_requested)
            except BaseException as error:
                self._tell("failed", error=f"{type(error).__name__}: {error}")
                raise
        self._tell("stopped" if self.stop_requested else "done")
        if self.stop_requested:
            logger.warning(
                "stopped after iteration %d; the same command with --resume goes on", self.progress.iteration
            )
        return self.progress

    def _log(self) -> AbstractContextManager[RunLog | None]:
        if processes.rank() != 0:
            return nullcontext()
        period, first_iteration = self.cfg.TRAINING.LOG_PERIOD, self.progress.iteration
        return RunLog(self.folder, period, first_iteration=first_iteration)

    def _loop(self, batches: Iterator[Batch], log: RunLog | None) -> None:
        if log is not None and self.checks.evaluation_due(self.progress.iteration):
            self.save()  # a kill cut this evaluation off, and perhaps the checkpoint before it
            self._check(log)
        self._tell("training")
        before_s, started_s = self.progress.elapsed_s, time.monotonic()
        fraction = run_fraction(self.cfg, self.progress.iteration, before_s)
        while fraction < 1 and not self.stop_requested:  # both are the same on every process
            lr = set_lr(self.optimizer, lr_factor(self.cfg, self.progress.iteration, fraction))
            losses = self._learn(next(batches))
            self.progress.iteration += 1
            elapsed_s, stop = processes.broadcast_floats(
                before_s + time.monotonic() - started_s, self.stop.is_requested
            )
            self.progress.elapsed_s, self.stop_requested = elapsed_s, bool(stop)
            fraction = run_fraction(self.cfg, self.progress.iteration, self.progress.elapsed_s)
            if log is not None and (means := log.record(self.progress.iteration, losses, lr, fraction, elapsed_s)):
                self._tell("training", means)
            if self._save_due():
                self.save()
                self._check(log)

    def _learn(self, batch: Batch) -> dict[str, float]:
        with EventStorage(self.progress.iteration):  # detectron2's heads log into one
            values = self.step(batch, lambda losses: self._diverged(batch, losses))
        if self.average is not None:
            self.average.update(self.model)
        return values

    def _save_due(self) -> bool:
        iteration = self.progress.iteration
        return iteration % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0 or self.checks.evaluation_due(iteration)

    def _check(self, log: RunLog | None, *, is_last: bool = False) -> None:
        """Evaluate the checkpoint that was just saved, if it is due; the other processes wait at their next step."""
        if log is None:
            return
        iteration, checkpoint = self.progress.iteration, self.folder / "checkpoint"
        if self.checks.evaluation_due(iteration, is_last=is_last):
            self._tell("evaluating")
            self.checks.evaluate(checkpoint, iteration, log)

    def _tell(self, phase: str, losses: dict[str, float] | None = None, *, error: str = "") -> None:
        """Write the run's progress, on the first process."""
        if processes.rank() != 0:
            return
        iteration, elapsed_s = self.progress.iteration, self.progress.elapsed_s
        fraction = run_fraction(self.cfg, iteration, elapsed_s)
        of = round(iteration / fraction) if fraction > 0 else self.cfg.SOLVER.MAX_ITER
        left_s = elapsed_s * (1 - fraction) / fraction if fraction > 0 else None
        progress = RunProgress(iteration, of, phase, losses or {}, left_s, elapsed_s, error)
        write_progress(self.folder / PROGRESS_FILE, progress, self.on_progress)

    def _diverged(self, batch: Batch, values: dict[str, float]) -> None:
        path = self.folder / f"diverged_batch_{processes.rank()}.pt"
        torch.save({"iteration": self.progress.iteration, "batch": batch, "model": self.model.state_dict()}, path)
        raise TrainingDiverged(
            f"losses after iteration {self.progress.iteration} are not finite: {values}. The batch and the weights "
            f"are in {path}; lower SOLVER.BASE_LR or the clipping, and resume from the last state."
        )

    def save(self) -> Path:
        """Write the state and, beside it, a checkpoint of the averaged weights; returns the checkpoint."""
        path = self.folder / "checkpoint"
        if processes.rank() != 0:
            return path
        self._save_state()
        images_seen = self.progress.iteration * self.cfg.SOLVER.IMS_PER_BATCH
        training = {
            "iterations": self.progress.iteration,
            "images_seen": images_seen,
            "minutes": round(self.progress.elapsed_s / 60, 1),
            "sets": list(self.cfg.DATASETS.TRAIN),
            "init": self.cfg.TRAINING.INIT or "random",
            "config": self.cfg.TRAINING.dump(),
        }
        metadata = {
            "name": self.name,
            "version": f"{self.name}-{self.progress.iteration}",
            "classes": list(self.samples.class_names),
            "preset": "paper" if self.cfg.MODEL.TRANSFINER.DETECTION == "cascaded" else "released",
            "training": training,
        } | self.metadata
        weights = self.average.state if self.average is not None else self.model.state_dict()
        save_checkpoint(path, network_config(self.cfg), weights, metadata, half=True, overwrite=True)
        return path

    def _save_state(self) -> None:
        """Write the state atomically: a killed save leaves the previous one whole."""
        state: dict[str, Any] = {
            "iteration": self.progress.iteration,
            "elapsed_s": self.progress.elapsed_s,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scale": self.step.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["rng_cuda"] = torch.cuda.get_rng_state()
        if self.average is not None:
            state |= {"average": self.average.state, "average_updates": self.average.updates}
        with replacing(self.folder / STATE_FILE) as unfinished:
            torch.save(state, unfinished)

    def _load_state(self) -> None:
        """Restore everything that `_save_state` wrote; entries that the file lacks keep their values.

        Raises:
            FileNotFoundError: the folder holds no state.
        """
        path = self.folder / STATE_FILE
        if not path.is_file():
            raise FileNotFoundError(f"nothing to resume: {path} does not exist; start without --resume")
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scale"):
            self.step.scaler.load_state_dict(state["scale"])
        torch.set_rng_state(state["rng"])
        if "rng_cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["rng_cuda"])
        if self.average is not None and "average" in state:
            for name, value in state["average"].items():
                self.average.state[name].copy_(value)
            self.average.updates = state["average_updates"]
        self.progress = TrainingProgress(state["iteration"], state["elapsed_s"])


class StopSignal:
    """A context in which SIGINT and SIGTERM set `is_requested` instead of ending the program.

    Outside the main thread, where Python handles no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: FrameType | None) -> None:
        logger.warning("%s: finishing this iteration, then saving", signal.Signals(number).name)
        self.is_requested = True


BEST_FOLDER = "best"


class Checks:
    """The periodic evaluations of a run, on the first process alone.

    Raises:
        ValueError: a check is asked for without a set to do it on.
    """

    def __init__(self, cfg: CfgNode, folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        if cfg.TEST.EVAL_PERIOD and not cfg.DATASETS.TEST:
            raise ValueError("TEST.EVAL_PERIOD needs a set in DATASETS.TEST")
        self._sets: dict[str, AnySet] = {}

    def evaluation_due(self, iteration: int, *, is_last: bool = False) -> bool:
        """Whether to evaluate after an iteration: periodically and after the last one, unless it has been recorded."""
        period = self.cfg.TEST.EVAL_PERIOD
        return (
            period > 0 and iteration > 0 and (is_last or iteration % period == 0) and not self._is_evaluated(iteration)
        )

    def evaluate(self, checkpoint: Path, iteration: int, log: RunLog) -> None:
        """Evaluate a checkpoint on every test set, record the figures, and keep it if it is the best so far."""
        figures: dict[str, float] = {}
        for name in self.cfg.DATASETS.TEST:
            with torch.random.fork_rng():
                samples = self._set(name)
                outcome = evaluate_checkpoint(
                    checkpoint, samples, device=self.cfg.MODEL.DEVICE, ratio=_boundary_ratio(samples)
                )
            prefix = f"{name}/" if len(self.cfg.DATASETS.TEST) > 1 else ""
            for metric in ("mask", "boundary"):
                figures[f"{prefix}{metric}_AP"] = float(outcome.refined[metric]["AP"])
                figures[f"{prefix}coarse_{metric}_AP"] = float(outcome.coarse[metric]["AP"])
        self._keep_best(checkpoint, iteration, figures)
        log.evaluated(iteration, figures)

    def _set(self, name: str) -> AnySet:
        if name not in self._sets:
            self._sets[name] = open_configured_set(name, self.cfg)
        return self._sets[name]

    def _is_evaluated(self, iteration: int) -> bool:
        path = self.folder / EVALUATIONS_FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return any(json.loads(line)["iteration"] == iteration for line in lines)

    def _keep_best(self, checkpoint: Path, iteration: int, figures: dict[str, float]) -> None:
        """Copy the checkpoint to ``best/`` if its mask AP on the first set is higher than that of the one there."""
        key = next(name for name in figures if name.endswith("mask_AP"))
        best_folder = self.folder / BEST_FOLDER
        mask_ap = figures[key]
        if math.isnan(mask_ap):
            return
        if best_folder.is_dir() and read_metadata(best_folder)["evaluation"][key] >= mask_ap:
            return
        copy_checkpoint(checkpoint, best_folder, {"evaluation": {"iteration": iteration} | figures})


def _boundary_ratio(samples: AnySet) -> float:
    """The boundary's width as a share of the image diagonal: Cityscapes' images are large (0.02 elsewhere)."""
    return 0.005 if isinstance(samples, CityscapesSet) else 0.02


def copy_checkpoint(checkpoint: Path, target: Path, facts: dict[str, Any]) -> None:
    """Copy a checkpoint directory, with more entries in its metadata; the target appears whole or stays as it was."""
    with replacing_folder(target) as staged:
        shutil.copytree(checkpoint, staged, dirs_exist_ok=True)
        update_metadata(staged, facts)
