"""The `soak` command."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence

import click

from backend.devtools.soak.annotators import Annotators, Verdict
from backend.devtools.soak.faults import BATCH_S, CRASHING_TASK, FAULTS, run_fault, run_random
from backend.devtools.soak.harness import ServiceHarness
from backend.settings import load_settings


@click.command()
@click.option("--fault", "faults", multiple=True, type=click.Choice(FAULTS), help="Only these.")
@click.option("--tasks", default=36, help="Tasks asked for during each fault.")
@click.option("--random", "is_random", is_flag=True, help="Faults at random moments instead, for --seconds.")
@click.option("--seconds", default=600.0, help="How long faults are random.")
@click.option("--seed", default=0, help="The same seed chooses the same faults.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def soak(faults: Sequence[str], tasks: int, is_random: bool, seconds: float, seed: int, as_json: bool) -> None:
    """Break every part of a service on this machine while tasks are asked for; each must be stored exactly once.

    Starts a queue server, an API, two workers with a stub for a model, and a stand-in for Label Studio, on loopback.

    \b
    Example: transfiner soak --fault kill-worker --fault restart-queue
    """
    load_settings()  # wrong variables are refused before any process is started
    verdicts = []
    for verdict in [run_random(seconds, seed)] if is_random else run_faults(faults or FAULTS, tasks, seed):
        verdicts.append(verdict)
        if not as_json:
            click.echo(line(verdict))
    if as_json:
        rows = [{**dataclasses.asdict(verdict), "good": verdict.is_good} for verdict in verdicts]
        click.echo(json.dumps(rows, indent=2))
    sys.exit(0 if all(verdict.is_good for verdict in verdicts) else 1)


def run_faults(faults: Sequence[str], tasks: int, seed: int) -> Iterator[Verdict]:
    """One harness for all; each fault gets tasks of its own and two healthy workers."""
    with ServiceHarness(is_breakable=True) as harness:
        for number, name in enumerate(faults):
            harness.end_workers()
            harness.start_workers(2, seconds=BATCH_S)
            harness.set_up_project()
            # Why a deferred task was parked is told to whoever asks again; all else must be kept without.
            asks_again = name == CRASHING_TASK
            yield run_fault(harness, name, Annotators(harness, 1 + number * tasks, tasks, asks_again=asks_again), seed)


def line(verdict: Verdict) -> str:
    """A verdict for people."""
    mark = click.style("ok  ", fg="green") if verdict.is_good else click.style("BAD ", fg="red")
    notes = ", ".join(f"{name}: {value}" for name, value in verdict.notes.items())
    return (
        f"{mark} {verdict.fault:18} {verdict.stored_once}/{verdict.tasks} stored once, {len(verdict.failed)} failed "
        f"with a reason, {len(verdict.lost)} lost, {len(verdict.doubled)} doubled, {verdict.seconds} s ({notes})"
    )
