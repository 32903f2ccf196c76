"""`transfiner benchmark beside`: Mask Transfiner and Mask R-CNN trained alike on any data set."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--config", default="training/photographs", show_default=True, help="Of Mask Transfiner; detectron2's "
              "Mask R-CNN is trained with the same keys.")  # fmt: skip
@click.option("--train-set", "train", required=True, help="Set to learn, as in `transfiner data check`.")
@click.option("--test-set", "test", required=True, help="Set to measure on.")
@click.option("--iterations", type=click.IntRange(0), default=0, help="Instead of the configuration's.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option("--ratio", type=float, default=0.02, show_default=True, help="Boundary width / image diagonal.")
@click.option(
    "--set", "overrides", nargs=2, multiple=True, metavar="KEY VALUE", help="Override a configuration key."
)
@click.option("--rows", "pictures", type=click.IntRange(0), default=4, show_default=True,
              help="Images in the picture.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("var/beside"), show_default=True,
              help="Folder of models and report; a run goes on there.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def beside(overrides: tuple[tuple[str, str], ...], pictures: int, out: Path, as_json: bool, device: str,
           **options: Any) -> None:  # fmt: skip
    """Train Mask Transfiner and Mask R-CNN on the same backbone, schedule and seed; print AP and boundary AP.

    \b
    Example: transfiner benchmark beside --train-set via:balloon/train:balloon --test-set via:balloon/val:balloon
    """
    import torch

    from training.benchmark.beside import Trial, as_markdown, judge, predict_both, train_both, write
    from training.benchmark.running import BenchmarkStopped
    from training.datasets import open_set

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    trial = Trial(device=device, overrides=tuple(part for pair in overrides for part in pair), **options)
    try:
        images = 2 * len(open_set(trial.test))  # opened before hours of training, not after
        checkpoints = train_both(trial, out, lambda line: click.echo(line, err=True))
        with click.progressbar(length=images, label=f"measuring {trial.test}", file=sys.stderr) as bar:
            truth, found, rows = predict_both(
                trial, checkpoints, pictures=pictures, progress=lambda: bar.update(1)
            )
    except (BenchmarkStopped, ValueError, FileNotFoundError, KeyError) as error:
        raise click.ClickException(str(error)) from error
    outcome = judge(truth, found, ratio=trial.ratio)
    write(out, trial, outcome, rows)
    click.echo(json.dumps(outcome) if as_json else as_markdown(trial, outcome))
