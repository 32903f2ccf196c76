"""Finetuning: the active model learns from a snapshot of corrections, without forgetting what it knew.

OUT/progress.json   how far it is (`training.engine.log`)
OUT/request.json    what was asked for; the same request again goes on where a killed one stopped
OUT/run/            state, losses, TensorBoard
OUT/checkpoint/     the result, once it is finished
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from model.checkpoints.checkpoint import Checkpoint, load_checkpoint
from model.checkpoints.metadata import METADATA_FILE, read_metadata
from model.files import write_text
from model.predictor import choose_device
from training import distributed as processes
from training.datasets.loader import TrainingSamples
from training.engine.log import PROGRESS_FILE, OnProgress, write_progress
from training.engine.log import RunProgress as FinetuneProgress
from training.engine.trainer import STATE_FILE, Trainer
from training.finetune.data import FinetuneData, finetune_data
from training.finetune.settings import FinetuneSettings
from training.finetune.start import describe, finetune_config, previous_names, starting_network
from training.snapshots.format import open_snapshot

__all__ = ["FinetuneProgress", "FinetuneSettings", "FinetuneStopped", "finetune"]

CHECKPOINT, RUN, REQUEST = "checkpoint", "run", "request.json"
# Settings that may differ between the sittings of one finetuning: they do not change what is learned.
_INCIDENTAL = ("threads", "data_workers", "save_period", "log_period", "device")
logger = logging.getLogger(__name__)


class FinetuneStopped(RuntimeError):  # noqa: N818 - not an error of the program
    """Somebody asked it to stop (SIGTERM, Ctrl-C); its state is kept."""


def finetune(
    active: Path,
    snapshot: Path,
    out: Path,
    *,
    classes: Sequence[str] = (),
    replay: Sequence[Path] = (),
    base_sets: Sequence[str] = (),
    settings: FinetuneSettings | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Finetune a checkpoint; asked again after a kill, go on from the last saved state.

    Under torchrun every process calls it; they learn as one.

    Args:
        active: checkpoint directory to start from. snapshot: directory of the newest snapshot.
        classes: names to learn, in their order; the snapshot's by default. Heads are kept by name.
        replay: directories of earlier snapshots, oldest first. base_sets: e.g. "scenes:train".
        on_progress: told how far it is, on the first process.

    Returns:
        The checkpoint directory, OUT/checkpoint.

    Raises:
        FinetuneStopped: it was asked to stop before its end.
        CheckpointError, SnapshotError, NothingToLearn: an input is unusable.
        ValueError: OUT holds another finetuning, or classes and renamings do not fit.
    """
    settings = settings or FinetuneSettings()
    settings = replace(settings, device=str(choose_device(settings.device)))
    joined = processes.process_count() == 1
    processes.init_process_group(settings.device)
    tell = _ProgressReporter(out, on_progress)
    try:
        return _finetune(active, snapshot, out, tuple(classes), replay, base_sets, settings, tell)
    except FinetuneStopped:
        raise
    except Exception as error:
        tell(FinetuneProgress(0, 0, "failed", error=f"{type(error).__name__}: {error}"))
        raise
    finally:
        if joined:
            processes.destroy_process_group()


def _finetune(
    active: Path,
    snapshot: Path,
    out: Path,
    classes: tuple[str, ...],
    replay: Sequence[Path],
    base_sets: Sequence[str],
    settings: FinetuneSettings,
    tell: _ProgressReporter,
) -> Path:
    tell(FinetuneProgress(0, 0, "starting"))
    parent = load_checkpoint(active)
    classes = classes or open_snapshot(snapshot).classes
    data = finetune_data(snapshot, replay, base_sets, classes, settings)
    _claim(out, _request(parent, data, classes, base_sets, settings))
    result = out / CHECKPOINT
    if (result / METADATA_FILE).is_file():
        logger.info("%s is finished already", result)
        return result
    trainer = _trainer(parent, data, classes, out, settings, tell)
    progress = trainer.train()
    if trainer.stop_requested:
        raise FinetuneStopped(
            f"stopped after {progress.iteration} of {trainer.cfg.SOLVER.MAX_ITER} iterations; the same command goes on"
        )
    if processes.rank() == 0:
        _publish(out / RUN / CHECKPOINT, result)
        tell(FinetuneProgress(progress.iteration, progress.iteration, "done", {}, 0.0, progress.elapsed_s))
    return result


def _trainer(
    parent: Checkpoint,
    data: FinetuneData,
    classes: tuple[str, ...],
    out: Path,
    settings: FinetuneSettings,
    tell: _ProgressReporter,
) -> Trainer:
    old = tuple(parent.metadata["classes"])
    sources = previous_names(old, classes, settings.renamed)
    logger.info("classes: %s", describe(old, classes, sources))
    cfg = finetune_config(parent.cfg, settings, data, len(classes))
    cfg.TRAINING.INIT = str(parent.metadata["version"])
    network = starting_network(cfg, parent.state, old, sources)
    resume = (out / RUN / STATE_FILE).is_file()
    samples = TrainingSamples(data.sets, cfg, seed=settings.seed, shares=data.shares)
    shares = dict(zip(data.names, data.shares, strict=True))
    logger.info("%d images, %d iterations, shares %s", data.images, cfg.SOLVER.MAX_ITER, shares)
    metadata = {
        "name": parent.metadata["name"],
        "version": f"{parent.metadata['name']}-{data.digests[0][:8]}",
        "preset": parent.metadata.get("preset", "released"),
        "parent": parent.metadata["version"],
        "served": parent.metadata.get("served", {}),
        "snapshot": data.digests[0],
        "finetuning": {"classes": describe(old, classes, sources), "images": data.images}
        | {"shares": shares, "settings": asdict(settings)},
    }
    return Trainer(cfg, network, out / RUN, resume=resume, samples=samples, metadata=metadata, on_progress=tell.of_run)


def _request(
    parent: Checkpoint, data: FinetuneData, classes: Sequence[str], base_sets: Sequence[str], settings: FinetuneSettings
) -> dict[str, Any]:
    wishes = {name: value for name, value in asdict(settings).items() if name not in _INCIDENTAL}
    return {
        "from": parent.metadata.get("digest", parent.metadata["version"]),
        "snapshots": list(data.digests),
        "base_sets": list(base_sets),
        "classes": list(classes),
        "settings": wishes,
    }


def _claim(out: Path, request: dict[str, Any]) -> None:
    """Write down what this folder is for, or check that it is for the same.

    Raises:
        ValueError: it is for something else.
    """
    path, plain = out / REQUEST, json.loads(json.dumps(request))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if differing := [key for key in plain if before.get(key) != plain[key]]:
            raise ValueError(
                f"{out} holds a finetuning with other {', '.join(differing)} "
                f"({', '.join(str(before.get(key)) for key in differing)}); choose another folder"
            )
    elif processes.rank() == 0:
        write_text(path, json.dumps(plain, indent=2) + "\n")


def _publish(checkpoint: Path, result: Path) -> None:
    staged = result.with_name(f".{result.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(checkpoint, staged)
    read_metadata(staged)
    staged.rename(result)


class _ProgressReporter:
    """Writes OUT/progress.json, and tells whoever asked; on the first process alone."""

    def __init__(self, out: Path, on_progress: OnProgress | None) -> None:
        self.path, self.on_progress = out / PROGRESS_FILE, on_progress

    def __call__(self, progress: FinetuneProgress) -> None:
        if processes.rank() == 0:
            write_progress(self.path, progress, self.on_progress)

    def of_run(self, progress: FinetuneProgress) -> None:
        """The trainer's note; its end is not the end while the checkpoint is not in place."""
        self(replace(progress, phase="saving") if progress.phase == "done" else progress)
