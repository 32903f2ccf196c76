"""`transfiner benchmark capacity`: measure this machine, then simulate the queue at loads it will never see."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from backend.settings import SHIPPED_MODEL


@click.command()
@click.option("--images-a-day", "images", type=click.IntRange(1, 10**8), multiple=True,
              default=(1000, 100_000, 10_000_000), show_default=True, help="A load; repeatable.")  # fmt: skip
@click.option("--figures", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="figures.json of an earlier run, instead of measuring.")  # fmt: skip
@click.option("--images-per-second", "images_a_second", type=click.FloatRange(0, min_open=True), metavar="RATE",
              help="Assume a network of this throughput, whatever the batch; the rest stays measured.")  # fmt: skip
@click.option("--processor-time", is_flag=True,
              help="The machine was busy: estimate with the processor time used, as on one free core.")  # fmt: skip
@click.option("--target", "target_s", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True,
              help="Seconds that 95 % of the single tasks may wait at the peak.")  # fmt: skip
@click.option("--profile", default="office", show_default=True,
              help="Hours of the day: office, flat, or 24 weights from midnight on, separated by commas.")  # fmt: skip
@click.option("--bulk-share", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True,
              help="Share of the tasks that come in requests of 450.")  # fmt: skip
@click.option("--interactive-share", type=click.FloatRange(0, 1), default=0.0, show_default=True,
              help="Share of the single tasks that take the fast lane.")  # fmt: skip
@click.option("--max-batch", type=click.IntRange(1), help="Tasks a batch.  [default: TRANSFINER_MAX_BATCH]")
@click.option("--max-wait-ms", type=click.FloatRange(0),
              help="That an idle worker waits for company.  [default: TRANSFINER_MAX_WAIT_MS]")  # fmt: skip
@click.option("--workers-per-host", "workers_a_host", type=click.IntRange(1), default=1, show_default=True,
              help="GPUs a host; 1 where a worker has the host's cores.")  # fmt: skip
@click.option("--disk-tb", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True,
              help="Disk for images and Label Studio's database.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of arrivals and batches.")
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path), default=SHIPPED_MODEL,
              help="Checkpoint directory to measure; the model that ships by default.")  # fmt: skip
@click.option("--batches", type=click.IntRange(2), default=30, show_default=True,
              help="Measured of each size (1, 2, 4, 8).")  # fmt: skip
@click.option("--tasks", type=click.IntRange(10), default=1000, show_default=True,
              help="Measured of the queue's own limit and of Label Studio's imports.")  # fmt: skip
@click.option("--label-studio/--no-label-studio", "with_label_studio", default=True,
              help="Start a real Label Studio and measure what it takes in.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("var/benchmark/capacity"),
              show_default=True, help="Folder of figures.json, report.json, report.md, capacity.png.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print report.json.")
def capacity(out: Path, as_json: bool, **options: Any) -> None:
    """Say how many workers and hosts some images a day need, and which part gives first.

    First measures this machine (minutes; everything it starts ends with it): the worker's batches with the real model,
    queue and HTTP with a model that costs nothing, a real Label Studio where it is installed. Then simulates queue and
    workers event by event with the measured batches, and holds the load against what else was measured. Images a day
    beyond 300,000 are simulated at the peak only. Limits say what one queue server, one API process and one Label
    Studio take.

    \b
    Example: transfiner benchmark capacity
    Example: transfiner benchmark capacity --figures var/benchmark/capacity/figures.json --images-per-second 6.1
    """
    from backend.capacity.report import write
    from backend.capacity.running import run

    outcome = run(options, out, _told())
    page = write(outcome, out)
    click.echo(json.dumps(outcome.as_dict()) if as_json else page)
    click.echo(f"The report is {out / 'report.md'}.", err=True)


def _told() -> Any:
    """One line that changes on a terminal, elsewhere a line for each thing said."""
    is_terminal = sys.stderr.isatty()

    def told(text: str) -> None:
        click.echo(f"\r\033[K{text}" if is_terminal else text, err=True, nl=not is_terminal)

    return told
