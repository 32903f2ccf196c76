"""`transfiner benchmark directions`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from backend.settings import SHIPPED_MODEL


@click.command()
@click.option("--weights", type=click.Path(exists=True, file_okay=False, path_type=Path), default=SHIPPED_MODEL,
              help="Checkpoint directory of the shared detector; the model that ships by default.")  # fmt: skip
@click.option("--table", "tables", type=click.Choice(["2", "4", "5", "6", "8"]), multiple=True,
              help="Only this table; repeatable.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True,
              help="Wall clock to fit the training steps to, timed at the start.")  # fmt: skip
@click.option("--steps", type=click.IntRange(0), default=0,
              help="Of each training, instead of what fits into --minutes.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Trainings of every row.")
@click.option("--scenes", type=click.IntRange(1), default=300, show_default=True, help="Training scenes.")
@click.option("--images", type=click.IntRange(1), default=40, show_default=True, help="Held-out scenes.")
@click.option("--coarse-steps", type=click.IntRange(1), default=300, show_default=True,
              help="In which the shared coarse mask first gets used to its smaller grid.")  # fmt: skip
@click.option("--processes", type=click.IntRange(0), default=0, help="One thread each; 0: one a core.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("var/benchmark/directions"),
              show_default=True, help="Folder of the run; the same command goes on there.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what it needs.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the report as JSON.")
def directions(
    weights: Path, tables: tuple[str, ...], minutes: float, steps: int, seeds: int, scenes: int, images: int,
    coarse_steps: int, processes: int, out: Path, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show in which direction the rows of Tables 2, 4, 5, 6 and 8 differ, in half an hour on a CPU.

    All rows start from one shared, frozen detector; only their mask heads are trained, at half the paper's sides.
    Differences are paired by scene and seed and come with intervals; what is not significant is called so.

    \b
    Example: transfiner benchmark directions --minutes 30 --seeds 3
    """
    from training.benchmark.directions.planning import Setting, plan
    from training.benchmark.directions.report import write
    from training.benchmark.directions.variants import TABLE_NUMBERS

    numbers = tuple(sorted(int(one) for one in tables)) or TABLE_NUMBERS
    chosen = Setting(
        weights,
        out,
        numbers,
        seeds,
        scenes,
        images,
        minutes,
        steps,
        processes or os.cpu_count() or 1,
        coarse_steps,
    )
    if dry_run:
        planned = plan(chosen)
        click.echo(json.dumps(planned) if as_json else _plan_text(planned))
        return
    report = _run(chosen)
    if report is None:
        raise click.ClickException("no seed is complete yet; the same command goes on")
    click.echo(json.dumps(report) if as_json else write(out, report)[1].read_text(encoding="utf-8"))


def _run(chosen: Any) -> dict[str, Any] | None:
    from training.benchmark.directions.planning import planned_steps
    from training.benchmark.directions.report import build, summary, write
    from training.benchmark.directions.running import run

    latest: list[dict[str, Any]] = []

    def after_seed(seeds: int) -> None:
        latest.append(build(chosen, planned_steps(chosen), seeds))
        write(chosen.folder, latest[-1])
        click.echo(
            f"{seeds} of {chosen.seeds} seeds: {summary(latest[-1])} {chosen.folder / 'report.md'}", err=True
        )

    run(chosen, lambda line: click.echo(line, err=True), after_seed)
    return latest[-1] if latest else None


def _plan_text(planned: dict[str, Any]) -> str:
    return (
        f"Tables {', '.join(map(str, planned['tables']))}: {planned['rows']} rows, {planned['trainings']} trainings of "
        f"mask heads ({planned['seeds']} seeds), {planned['measurements']} measurements on {planned['images']} scenes\n"
        f"data: nothing to download; {planned['scenes']} training scenes are drawn, {planned['disk_mb']} MB on disk\n"
        f"steps of each training: {planned['steps']}\n"
        f"time: about {planned['minutes']:g} minutes with {planned['processes']} processes of one thread; no GPU"
    )
