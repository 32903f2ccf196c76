"""`transfiner benchmark anytime`: what accuracy a budget of nodes buys."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

BUDGETS = (250, 500, 1000, 2000, 4000, 8000)


@click.command()
@click.option(
    "--weights",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Checkpoint directory.",
)
@click.option(
    "--set", "name", default="scenes:val:40", show_default=True, help="Set, scenes:... or coco:FILE:FOLDER/."
)
@click.option("--budget", "budgets", type=click.IntRange(1), multiple=True, default=BUDGETS, show_default=True,
              help="Nodes an image; repeatable.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(0), default=1, show_default=True, help="0: the machine's.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="PNG of the curve.")
@click.option("--json", "as_json", is_flag=True)
def anytime(weights: Path, name: str, budgets: tuple[int, ...], device: str, threads: int, picture: Path | None,
            as_json: bool) -> None:  # fmt: skip
    """Draw boundary AP against time for several node budgets (MODEL.TRANSFINER.TEST_NODE_BUDGET), the knee marked.

    \b
    Example: transfiner benchmark anytime --weights model/weights/scenes-small --picture anytime.png
    """
    import torch

    from training.cost.anytime import anytime_curve, as_dict, as_text, draw
    from training.datasets import open_set
    from training.evaluation.run import load_for_evaluation

    if threads:
        torch.set_num_threads(threads)
    network, cfg, _ = load_for_evaluation(weights, device)
    samples = open_set(name)
    with click.progressbar(length=len(samples), label=f"measuring {name}", file=sys.stderr) as bar:
        points = anytime_curve(network, cfg, samples, budgets, progress=lambda _: bar.update(1))
    if picture is not None:
        draw(points, picture)
    click.echo(json.dumps(as_dict(points)) if as_json else as_text(points))
