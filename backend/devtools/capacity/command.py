"""`transfiner benchmark capacity`: what a task costs on this machine, in every part of the service."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from backend.settings import SCENES_MODEL


@click.command()
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=SCENES_MODEL,
    help="Checkpoint directory to measure; scenes-small by default.",
)
@click.option(
    "--batches", type=click.IntRange(2), default=30, show_default=True, help="Measured of each size (1, 2, 4, 8)."
)
@click.option(
    "--tasks",
    type=click.IntRange(10),
    default=1000,
    show_default=True,
    help="Measured of the queue's own limit and of Label Studio's imports.",
)
@click.option(
    "--label-studio/--no-label-studio",
    "with_label_studio",
    default=True,
    help="Start a real Label Studio and measure what it takes in.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("var/benchmark/capacity"),
    show_default=True,
    help="Folder of figures.json and report.md.",
)
@click.option("--json", "as_json", is_flag=True, help="Print figures.json.")
def capacity(model: Path, batches: int, tasks: int, with_label_studio: bool, out: Path, as_json: bool) -> None:
    """Measure what a task costs: the worker's batches, queue and HTTP, a real Label Studio's imports.

    Takes minutes; everything it starts ends with it. docs/scale.md says what such figures mean for many images a day.

    \b
    Example: transfiner benchmark capacity --batches 10 --tasks 200
    """
    from backend.devtools.capacity.measuring import CapacityMeasurement, Sizes

    fewer = max(10, tasks // 5)
    sizes = Sizes(batches=batches, tasks=tasks, singles=fewer, retrieved=fewer)
    figures = CapacityMeasurement(model, sizes, with_label_studio, _progress()).run()
    out.mkdir(parents=True, exist_ok=True)
    text = figures.model_dump_json(indent=2) + "\n"
    (out / "figures.json").write_text(text, encoding="utf-8")
    (out / "report.md").write_text(figures.as_markdown(), encoding="utf-8")
    click.echo(text if as_json else figures.as_markdown())
    click.echo(f"The report is {out / 'report.md'}.", err=True)


def _progress() -> Callable[[str], None]:
    """One line that changes on a terminal, elsewhere a line for each message."""
    is_terminal = sys.stderr.isatty()

    def report(text: str) -> None:
        click.echo(f"\r\033[K{text}" if is_terminal else text, err=True, nl=not is_terminal)

    return report
