"""`transfiner train`."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click


@click.command()
@click.argument("config")
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder of the run.",
)
@click.option("--name", default=None, help="Name of the checkpoint; the configuration's by default.")
@click.option("--max-minutes", type=float, default=None, help="Fit the schedule to this wall-clock time.")
@click.option("--resume", is_flag=True, help="Go on where the folder's run stopped.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option(
    "--set", "overrides", nargs=2, multiple=True, metavar="KEY VALUE", help="Override a configuration key."
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def train(
    config: str, folder: Path, name: str | None, max_minutes: float | None, resume: bool, device: str,
    overrides: tuple[tuple[str, str], ...], as_json: bool,
) -> None:  # fmt: skip
    """Train a model from a configuration; stop it with Ctrl-C, go on with --resume.

    \b
    Example: transfiner train training/scenes-small --out var/train/scenes-small --max-minutes 85
    Several processes: torchrun --nproc-per-node 2 -m backend.cli train ... (a busy CPU likes two processes of one
    thread better than one of two; see TRAINING.THREADS)
    """
    import torch

    from model.overrides import override
    from training import processes
    from training.building import build_for_training
    from training.config import get_training_config
    from training.run_state import STATE_FILE
    from training.trainer import Trainer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    cfg = get_training_config(config)
    try:
        override(cfg, [part for pair in overrides for part in pair])
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if max_minutes is not None:
        cfg.TRAINING.MAX_MINUTES = max_minutes
    cfg.MODEL.DEVICE = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if not resume and (folder / STATE_FILE).exists():
        raise click.ClickException(
            f"{folder} holds a run already; add --resume to go on, or choose another --out"
        )
    processes.join(cfg.MODEL.DEVICE)
    trainer = Trainer(cfg, build_for_training(cfg), folder, name=name or Path(config).stem, resume=resume)
    first = processes.rank() == 0
    try:
        progress = trainer.train()
    finally:
        processes.leave()
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
