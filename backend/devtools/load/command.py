"""The `load` command: what HTTP and queue cost beside the bare predictor, in one run on one machine."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from backend.devtools.load.measuring import BarePredictor, Json, ServedModelRun, memory_mib, noisy_pictures
from backend.devtools.load.memory import memory_table
from backend.devtools.load.prompts import measure_prompts
from backend.settings import SCENES_MODEL, load_settings


@click.command()
@click.option("--tasks", default=48, help="Tasks of each measurement.")
@click.option("--batch", default=4, help="Tasks predicted together.")
@click.option("--rounds", default=9, help="Bare and served take turns this often.")
@click.option("--model", type=click.Path(path_type=Path), default=SCENES_MODEL, help="Checkpoint directory.")
@click.option("--stub", is_flag=True, help="A model that costs nothing: the queue's own limit.")
@click.option("--memory", type=click.IntRange(1), help="Only memory, with requests of this many tasks.")
@click.option("--prompts", type=click.IntRange(0), default=0, help="Instead: latency of prompts on this many images.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def load(
    tasks: int, batch: int, rounds: int, model: Path, stub: bool, memory: int | None, prompts: int, as_json: bool
) -> None:
    """Measure throughput and latency through HTTP and queue beside the bare predictor, and each process's memory.

    "bare" is a script: it decodes each image and asks the predictor; "bare with outlines" also makes the regions that
    Label Studio gets, as the service must. The overhead of a task is what its request took beyond the worker's own
    seconds for it (image, network, outlines), asked one at a time. CPU is what each process used, whoever else was
    on the machine. Start-up is from the worker's process to the first answer, a swap from replacing the checkpoint.

    --memory prints the most that API, worker and queue server need with 80 and 1,203 labels, and with 40 MP images.

    \b
    Example: transfiner load --tasks 200
    Example: transfiner load --prompts 30 --tasks 200
    Example: transfiner load --memory 5000
    """
    load_settings()
    if memory:
        rows = memory_table(None if stub else model, memory)
        click.echo(json.dumps(rows, indent=2) if as_json else _memory_text(rows))
        return
    if prompts:
        _report({"load average before": _load_average(), **measure_prompts(model, prompts, tasks, batch)}, as_json)
        return
    pictures = noisy_pictures(tasks)
    figures: Json = {"tasks": tasks, "batch": batch, "load average before": _load_average()}
    bare = None if stub else BarePredictor(model, batch)
    turns: list[Json] = []
    with ServedModelRun(None if stub else model, pictures, batch) as service:
        for number in range(1 if stub else rounds):
            _tell(f"turn {number + 1} of {1 if stub else rounds}")
            turns.append(_turn(bare, service, pictures, number))
        for name in turns[0]:
            figures[name] = _middle([turn[name] for turn in turns])
        figures["start-up in s"] = {"worker to first prediction": round(service.start_up_s, 1)}
        _tell("one task at a time")
        figures["one at a time"] = service.run_singly(max(8, tasks // 4))
        figures["memory in MiB"] = {name: memory_mib(pid) for name, pid in service.pids().items()}
        if bare:
            figures["share of bare throughput"] = _share(turns, "bare")
            figures["share of bare with outlines"] = _share(turns, "bare with outlines")
            figures["model swap in s"] = service.swap_s()
    _report(figures, as_json)


def _load_average() -> float:
    return round(os.getloadavg()[0], 2)


def _report(figures: Json, as_json: bool) -> None:
    figures["load average after"] = _load_average()
    click.echo(json.dumps(figures, indent=2) if as_json else _text(figures))


def _memory_text(rows: list[Json]) -> str:
    """A Markdown table, as in docs/scale.md."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _turn(bare: BarePredictor | None, service: ServedModelRun, pictures: Sequence[bytes], number: int) -> Json:
    """Each measured once, every other turn in the reverse order: the speed of a shared machine drifts."""
    ways: dict[str, Callable[[], Json]] = {"served": lambda: service.run_together(number)}
    if bare:
        ways = {
            "bare": lambda: bare.run(pictures),
            "bare with outlines": lambda: bare.run(pictures, service.config),
            **ways,
        }
    names = list(ways) if number % 2 == 0 else list(reversed(ways))
    figures = {name: ways[name]() for name in names}
    return {name: figures[name] for name in ways}


def _middle(rows: list[Json]) -> Json:
    """The row of the middle throughput."""
    return sorted(rows, key=lambda row: float(row["tasks a second"]))[len(rows) // 2]


def _share(turns: list[Json], of: str) -> float:
    """Median over the rounds of served to bare."""
    shares = [turn["served"]["tasks a second"] / turn[of]["tasks a second"] for turn in turns]
    return round(statistics.median(shares), 3)


def _text(figures: Json) -> str:
    rows = []
    for name, value in figures.items():
        inner = ", ".join(f"{n} {v}" for n, v in value.items()) if isinstance(value, dict) else value
        rows.append(f"{name:26} {inner}")
    return "\n".join(rows)
