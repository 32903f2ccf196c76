"""Finetune the active model on a snapshot of corrections, with replay of earlier data against forgetting.

OUT/progress.json   progress (`training.engine.log`)
OUT/request.json    the request; the same request resumes a killed one
OUT/run/            state, losses, TensorBoard
OUT/checkpoint/     the result, once it is finished

It starts from the active model's weights and configuration, with another schedule and other classes. The rows of
class-wise layers are kept by class name: classes are added, removed and renamed.

Shape shorthand: K classes of the active model, J of the finetuned one.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from model.checkpoints.checkpoint import Checkpoint, load_checkpoint
from model.checkpoints.metadata import METADATA_FILE
from model.checkpoints.state_dict import load_weights
from model.config import override
from model.files import write_text
from model.inference.predictor import choose_device
from model.network import build_network
from training.datasets.loader import TrainingSamples
from training.engine import distributed as processes
from training.engine.build import add_training_config, suit_device
from training.engine.log import PROGRESS_FILE, OnProgress, RunProgress, write_progress
from training.engine.trainer import STATE_FILE, Trainer, copy_checkpoint
from training.finetune.plan import FinetuneData, FinetuneSettings, finetune_data
from training.snapshots.format import open_snapshot

CHECKPOINT, RUN, REQUEST = "checkpoint", "run", "request.json"
# Settings that may differ when a finetuning is resumed: they do not change what is learned.
_INCIDENTAL = ("threads", "data_workers", "save_period", "log_period", "device")
logger = logging.getLogger(__name__)


class FinetuneStopped(RuntimeError):  # noqa: N818 - not an error of the program
    """The finetuning was stopped on request (SIGTERM, Ctrl-C); its state is saved."""


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
    """Finetune a checkpoint, or resume it from the last saved state.

    Under torchrun every process calls it; they train one network.

    Args:
        active: checkpoint directory to start from. snapshot: directory of the newest snapshot.
        classes: names to learn, in their order; the snapshot's by default. Heads are kept by name.
        replay: directories of earlier snapshots, oldest first. base_sets: e.g. "scenes:train".
        on_progress: called with each progress, on the first process.

    Returns:
        The checkpoint directory, OUT/checkpoint.

    Raises:
        FinetuneStopped: it was stopped before its end.
        CheckpointError, SnapshotError, NothingToLearn: an input is unusable.
        ValueError: OUT holds another finetuning, or classes and renamings do not fit.
    """
    settings = settings or FinetuneSettings()
    settings = replace(settings, device=str(choose_device(settings.device)))
    owns_group = processes.process_count() == 1
    processes.init_process_group(settings.device)
    tell = _ProgressReporter(out, on_progress)
    try:
        return _finetune(active, snapshot, out, tuple(classes), replay, base_sets, settings, tell)
    except FinetuneStopped:
        raise
    except Exception as error:
        tell(RunProgress(0, 0, "failed", error=f"{type(error).__name__}: {error}"))
        raise
    finally:
        if owns_group:
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
    tell(RunProgress(0, 0, "starting"))
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
        copy_checkpoint(out / RUN / CHECKPOINT, result, {})
        tell(RunProgress(progress.iteration, progress.iteration, "done", {}, 0.0, progress.elapsed_s))
    return result


def _trainer(
    parent: Checkpoint,
    data: FinetuneData,
    classes: tuple[str, ...],
    out: Path,
    settings: FinetuneSettings,
    tell: _ProgressReporter,
) -> Trainer:
    old_classes = tuple(parent.metadata["classes"])
    sources = previous_names(old_classes, classes, settings.renamed)
    logger.info("classes: %s", describe(old_classes, classes, sources))
    cfg = finetune_config(parent.cfg, settings, data, len(classes))
    cfg.TRAINING.INIT = str(parent.metadata["version"])
    network = starting_network(cfg, parent.state, old_classes, sources)
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
        "finetuning": {"classes": describe(old_classes, classes, sources), "images": data.images}
        | {"shares": shares, "settings": asdict(settings)},
    }
    return Trainer(cfg, network, out / RUN, resume=resume, samples=samples, metadata=metadata, on_progress=tell.of_run)


def _request(
    parent: Checkpoint, data: FinetuneData, classes: Sequence[str], base_sets: Sequence[str], settings: FinetuneSettings
) -> dict[str, Any]:
    learning_settings = {name: value for name, value in asdict(settings).items() if name not in _INCIDENTAL}
    return {
        "from": parent.metadata.get("digest", parent.metadata["version"]),
        "snapshots": list(data.digests),
        "base_sets": list(base_sets),
        "classes": list(classes),
        "settings": learning_settings,
    }


def _claim(out: Path, request: dict[str, Any]) -> None:
    """Write the request into the folder, or check that the folder holds the same one.

    Raises:
        ValueError: it holds another one.
    """
    path, plain = out / REQUEST, json.loads(json.dumps(request))
    if path.is_file():
        earlier_request = json.loads(path.read_text(encoding="utf-8"))
        if differing := [key for key in plain if earlier_request.get(key) != plain[key]]:
            raise ValueError(
                f"{out} holds a finetuning with other {', '.join(differing)} "
                f"({', '.join(str(earlier_request.get(key)) for key in differing)}); choose another folder"
            )
    elif processes.rank() == 0:
        write_text(path, json.dumps(plain, indent=2) + "\n")


class _ProgressReporter:
    """Writes OUT/progress.json and calls `on_progress`, on the first process alone."""

    def __init__(self, out: Path, on_progress: OnProgress | None) -> None:
        self.path, self.on_progress = out / PROGRESS_FILE, on_progress

    def __call__(self, progress: RunProgress) -> None:
        if processes.rank() == 0:
            write_progress(self.path, progress, self.on_progress)

    def of_run(self, progress: RunProgress) -> None:
        """Write the trainer's progress; its "done" becomes "saving", since the checkpoint is still to be moved."""
        self(replace(progress, phase="saving") if progress.phase == "done" else progress)


WEIGHT_DECAY = 0.02
LARGEST_NORM = 5.0
LONGEST_WARM_UP = 100
# Saving takes as long as half a step of a small model; a kill loses at most this many steps.
LEAST_SAVE_PERIOD = 25


def finetune_config(parent: CfgNode, settings: FinetuneSettings, data: FinetuneData, classes: int) -> CfgNode:
    """The configuration of the active model's network, with the schedule of the settings' preset."""
    cfg: CfgNode = parent.clone()
    cfg.defrost()
    add_training_config(cfg)
    schedule, steps = settings.schedule(data.images), settings.steps(data.images, data.shares[0])
    cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.SEED = settings.device, classes, settings.seed
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(data.names), ()
    cfg.DATALOADER.NUM_WORKERS = settings.data_workers
    solver, keys = cfg.SOLVER, cfg.TRAINING
    solver.IMS_PER_BATCH, solver.MAX_ITER = settings.batch_size, steps
    solver.BASE_LR, solver.WEIGHT_DECAY = settings.base_lr or schedule.base_lr, WEIGHT_DECAY
    solver.WARMUP_METHOD, solver.WARMUP_FACTOR = "linear", 0.01
    solver.WARMUP_ITERS = min(LONGEST_WARM_UP, steps // 10)
    solver.CHECKPOINT_PERIOD = settings.save_period or max(LEAST_SAVE_PERIOD, steps // 20)
    clip = solver.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "norm", LARGEST_NORM
    keys.OPTIMIZER, keys.SCHEDULE = "AdamW", "cosine"
    keys.BACKBONE_LR_FACTOR, keys.EMA_DECAY = schedule.backbone_lr_factor, schedule.ema_decay
    keys.MAX_MINUTES, keys.THREADS = float(settings.max_minutes), settings.threads
    keys.ACCUMULATE, keys.PRECISION = settings.accumulate, settings.precision
    keys.LOG_PERIOD = settings.log_period or max(1, steps // 50)
    cfg.TEST.EVAL_PERIOD = 0  # the gate judges on images that must not choose the weights
    override(cfg, [part for pair in settings.overrides.items() for part in pair])
    return cfg


def starting_network(
    cfg: CfgNode, state: Mapping[str, Tensor], old_classes: Sequence[str], sources: Sequence[str | None]
) -> nn.Module:
    """Build the network with the active model's weights, class rows in the order of the new classes.

    Args:
        old_classes: names of the active model's classes. sources: the old name of each new class, None for a new one.

    Raises:
        CheckpointError: the weights do not fit the configuration.
    """
    torch.manual_seed(cfg.SEED)
    network = build_network(cfg)
    rows = [None if source is None else list(old_classes).index(source) for source in sources]
    load_weights(network, fit_classes(state, network.state_dict(), len(old_classes), rows), source="the active model")
    suit_device(network, cfg)
    return network


# Layers with rows for classes: (rows a class, extra rows at the end). Scores have one extra row, the background.
_LAYERS = {
    r"roi_heads\.box_predictor(\.\d+)?\.cls_score\.(weight|bias)": (1, 1),
    r"roi_heads\.box_predictor(\.\d+)?\.bbox_pred\.(weight|bias)": (4, 0),
    r"(.+\.)?mask_head\.predictor\.(weight|bias)": (1, 0),
    r"(.+\.)?class_embed(\.\d+)?\.(weight|bias)": (1, 0),
}


def previous_names(
    old_classes: Sequence[str], new_classes: Sequence[str], new_names: Mapping[str, str] | None = None
) -> tuple[str | None, ...]:
    """For each class to learn the old class whose rows it takes, None for a new class.

    Args:
        new_names: old name -> new name of renamed classes.

    Raises:
        ValueError: a renaming from or to an unknown class, or two to the same.
    """
    new_names = dict(new_names or {})
    if absent := [name for name in new_names if name not in old_classes]:
        raise ValueError(
            f"cannot rename {', '.join(absent)}: the model's classes are {', '.join(old_classes)}; correct the old name"
        )
    if absent := [name for name in new_names.values() if name not in new_classes]:
        raise ValueError(
            f"cannot rename to {', '.join(absent)}: the classes to learn are {', '.join(new_classes)}; "
            "correct the new name"
        )
    if len(set(new_names.values())) < len(new_names):
        raise ValueError(f"two classes are renamed to the same one: {new_names}; rename only one of them")
    sources = {new_name: old_name for old_name, new_name in new_names.items()}
    unchanged_names = set(old_classes) - set(new_names)
    return tuple(sources.get(name, name if name in unchanged_names else None) for name in new_classes)


def fit_classes(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], old_count: int, sources: Sequence[int | None]
) -> dict[str, Tensor]:
    """Convert the state of a network with K classes to the starting state of one with J.

    The rows of a new class are the mean of all old ones instead of random: they score any object, with a box and a mask
    that fit it. Layers without class rows are unchanged.

    Args:
        state: of the old network. expected: of the new network, for its shapes.
        old_count: K. sources: J, the old class of each class, None for a new one.
    """
    return {
        name: _rows(tensor, layout, old_count, sources)
        if (layout := _layout(name, tensor, expected.get(name), old_count, len(sources)))
        else tensor
        for name, tensor in state.items()
    }


def _layout(
    name: str, tensor: Tensor, expected: Tensor | None, old_count: int, new_count: int
) -> tuple[int, int] | None:
    """Rows a class and extra rows of a layer; None where its rows do not belong to classes (class-agnostic)."""
    for pattern, (rows_a_class, extra_rows) in _LAYERS.items():
        if re.fullmatch(pattern, name) and expected is not None and tensor.dim() > 0:
            old_rows, new_rows = rows_a_class * old_count + extra_rows, rows_a_class * new_count + extra_rows
            return (rows_a_class, extra_rows) if (len(tensor), len(expected)) == (old_rows, new_rows) else None
    return None


def _rows(tensor: Tensor, layout: tuple[int, int], old_count: int, sources: Sequence[int | None]) -> Tensor:
    rows_a_class, extra_rows = layout
    by_class = tensor[: rows_a_class * old_count].unflatten(0, (old_count, rows_a_class))
    mean_rows = by_class.mean(0)
    class_rows = torch.stack([mean_rows if source is None else by_class[source] for source in sources])
    return torch.cat([class_rows.flatten(0, 1), tensor[len(tensor) - extra_rows :]])


def describe(old_classes: Sequence[str], new_classes: Sequence[str], sources: Sequence[str | None]) -> str:
    """Describe the kept, renamed, added and removed classes, in a line for the log."""
    kinds = {
        "kept": [name for name, source in zip(new_classes, sources, strict=True) if source == name],
        "renamed": [
            f"{source} to {name}"
            for name, source in zip(new_classes, sources, strict=True)
            if source not in (None, name)
        ],
        "added": [name for name, source in zip(new_classes, sources, strict=True) if source is None],
        "removed": [name for name in old_classes if name not in sources],
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
