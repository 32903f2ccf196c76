"""The `soak` command."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from backend.devtools.soak.annotators import Annotators, Verdict
from backend.devtools.soak.faults import BATCH_S, FAULTS
from backend.devtools.soak.harness import ServiceHarness
from backend.devtools.soak.random_faults import run_random
from backend.settings import load_settings


@click.command()
@click.option("--fault", "faults", multiple=True, type=click.Choice(sorted(FAULTS)), help="Only these.")
@click.option("--tasks", default=36, show_default=True, help="Tasks asked for during each fault.")
@click.option("--rounds", default=1, show_default=True, help="How often the whole list is gone through.")
@click.option("--random", "is_random", is_flag=True, help="Faults at random moments instead, for --seconds.")
@click.option("--seconds", default=600.0, show_default=True, help="How long faults are random.")
@click.option("--seed", default=0, show_default=True, help="The same seed chooses the same faults.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the verdicts here as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def soak(
    faults: Sequence[str],
    tasks: int,
    rounds: int,
    is_random: bool,
    seconds: float,
    seed: int,
    report: Path | None,
    as_json: bool,
) -> None:
    """Break every part of a service on this machine while tasks are asked for; each must be stored exactly once.

    Starts a queue server, an API, two workers with a stub for a model, and a stand-in for Label Studio, on loopback.

    \b
    Example: transfiner soak --fault worker-killed --fault queue-restarted
    """
    load_settings()  # wrong variables are refused before any process is started
    verdicts = []
    run = [run_random(seconds, seed)] if is_random else run_faults(faults or list(FAULTS), tasks, rounds)
    for verdict in run:
        verdicts.append(verdict)
        if not as_json:
            click.echo(line(verdict))
    rows = [as_row(verdict) for verdict in verdicts]
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    sys.exit(0 if all(verdict.is_good for verdict in verdicts) else 1)


def run_faults(faults: Sequence[str], tasks: int, rounds: int) -> Iterator[Verdict]:
    """One harness for all; each fault gets tasks of its own and two healthy workers."""
    with ServiceHarness() as harness:
        for number, name in enumerate(list(faults) * rounds):
            harness.end_workers()
            harness.start_workers(2, seconds=BATCH_S)
            harness.set_up_project()
            yield FAULTS[name](harness, Annotators(harness, 1 + number * tasks, tasks))


def as_row(verdict: Verdict) -> dict[str, Any]:
    return {**dataclasses.asdict(verdict), "good": verdict.is_good}


def line(verdict: Verdict) -> str:
    mark = click.style("ok  ", fg="green") if verdict.is_good else click.style("BAD ", fg="red")
    notes = ", ".join(f"{name}: {value}" for name, value in verdict.notes.items())
    return (
        f"{mark} {verdict.fault:18} {verdict.stored_once}/{verdict.tasks} stored once, {len(verdict.failed)} failed "
        f"with a reason, {len(verdict.lost)} lost, {len(verdict.doubled)} doubled, {verdict.seconds} s ({notes})"
    )
