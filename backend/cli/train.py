"""`transfiner train`.

`transfiner finetune`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from backend.cli.types import CHECKPOINT, DEVICE


@click.command()
@click.argument("config")
@click.option(
    "--out", "folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the run."
)
@click.option("--name", default=None, help="Name of the checkpoint; the configuration's by default.")
@click.option("--max-minutes", type=float, default=None, help="Fit the schedule to this wall-clock time.")
@click.option("--resume", is_flag=True, help="Go on where the folder's run stopped.")
@click.option("--device", type=DEVICE, default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option("--set", "overrides", nargs=2, multiple=True, metavar="KEY VALUE", help="Override a configuration key.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
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
    from model.predictor import choose_device
    from training import distributed as processes
    from training.engine.build import build_for_training
    from training.engine.config import get_training_config
    from training.engine.trainer import STATE_FILE, Trainer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    cfg = get_training_config(config)
    try:
        override(cfg, [part for pair in overrides for part in pair])
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if max_minutes is not None:
        cfg.TRAINING.MAX_MINUTES = max_minutes
    cfg.MODEL.DEVICE = str(choose_device(device))
    if not resume and (folder / STATE_FILE).exists():
        raise click.ClickException(f"{folder} holds a run already; add --resume to go on, or choose another --out")
    processes.init_process_group(cfg.MODEL.DEVICE)
    first = processes.rank() == 0
    try:
        trainer = Trainer(cfg, build_for_training(cfg), folder, name=name or Path(config).stem, resume=resume)
        progress = trainer.train()
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        processes.destroy_process_group()
    if not first:
        return
    outcome = {
        "checkpoint": str(folder / "checkpoint"),
        "iterations": progress.iteration,
        "minutes": round(progress.elapsed_s / 60, 1),
        "stopped": trainer.stop_requested,
    }
    if as_json:
        click.echo(json.dumps(outcome))
    else:
        click.echo(f"{outcome['checkpoint']}: {outcome['iterations']} iterations in {outcome['minutes']} min")


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option("--from", "active", type=CHECKPOINT, required=True, help="Checkpoint directory to start from.")
@click.option("--snapshot", type=_FOLDER, required=True, help="Snapshot to learn from.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of this finetuning."
)
@click.option("--class", "classes", multiple=True, help="A class to learn; the snapshot's by default.")
@click.option("--rename", "renamed", nargs=2, multiple=True, metavar="OLD NEW", help="A class's new name.")
@click.option("--replay", type=_FOLDER, multiple=True, help="Earlier snapshot to replay; oldest first.")
@click.option(
    "--base", "base_sets", multiple=True, metavar="SET", help="Base data, e.g. scenes:train or coco:FILE.json:IMAGES/."
)
@click.option(
    "--preset",
    type=click.Choice(["auto", "tens", "hundreds", "thousands"]),
    default="auto",
    show_default=True,
    help="Schedule, by the number of images.",
)
@click.option("--iterations", type=click.IntRange(1), default=None, help="Steps; the preset's by default.")
@click.option("--epochs", type=float, default=None, help="Instead: over the snapshot's images.")
@click.option("--max-minutes", type=float, default=0.0, help="Fit the schedule to this wall-clock time.")
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Images a step.")
@click.option("--replay-share", type=float, default=0.25, show_default=True, help="Of the samples.")
@click.option("--base-share", type=float, default=0.25, show_default=True, help="Of the samples.")
@click.option(
    "--band-weight", type=float, default=3.0, show_default=True, help="Weight of places where people moved an outline."
)
@click.option("--plain", is_flag=True, help="Ignore the corrections' weights and bands.")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--threads", type=int, default=0, help="Threads of the arithmetic; 0: the machine's.")
@click.option("--device", type=DEVICE, default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option("--set", "overrides", nargs=2, multiple=True, metavar="KEY VALUE", help="Override a configuration key.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def finetune(
    active: Path,
    snapshot: Path,
    out: Path,
    classes: tuple[str, ...],
    renamed: tuple[tuple[str, str], ...],
    replay: tuple[Path, ...],
    base_sets: tuple[str, ...],
    preset: str,
    iterations: int | None,
    epochs: float | None,
    max_minutes: float,
    batch_size: int,
    replay_share: float,
    base_share: float,
    band_weight: float,
    plain: bool,
    precision: str,
    threads: int,
    device: str,
    overrides: tuple[tuple[str, str], ...],
    as_json: bool,
) -> None:
    """Finetune a model on a snapshot of corrections; the same command goes on after a stop or a kill.

    \b
    Example: transfiner finetune --from model/weights/scenes-small --snapshot var/snapshots/DIGEST --out var/finetune/1
    Several processes: torchrun --nproc-per-node 2 -m backend.cli.main finetune ...
    Ctrl-C or SIGTERM saves the state and ends with exit code 1. OUT/progress.json says how far it is.
    """
    from model.checkpoints.metadata import CheckpointError
    from training import distributed as processes
    from training.engine.log import PROGRESS_FILE, read_progress
    from training.finetune.finetune import FinetuneSettings, FinetuneStopped
    from training.finetune.finetune import finetune as run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        settings = FinetuneSettings(
            preset=preset,
            iterations=iterations,
            epochs=epochs,
            batch_size=batch_size,
            max_minutes=max_minutes,
            replay_share=replay_share,
            base_share=base_share,
            band_weight=band_weight,
            use_weights=not plain,
            renamed=dict(renamed),
            precision=precision,
            threads=threads,
            device=device,
            overrides=dict(overrides),
        )
        first = processes.launched_rank() == 0
        checkpoint = run(active, snapshot, out, classes=classes, replay=replay, base_sets=base_sets, settings=settings)
    except (FinetuneStopped, CheckpointError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if not first:
        return
    progress = read_progress(out / PROGRESS_FILE)
    outcome = {"checkpoint": str(checkpoint), "iterations": progress.iteration if progress else None}
    click.echo(json.dumps(outcome) if as_json else f"{checkpoint}: {outcome['iterations']} iterations")
