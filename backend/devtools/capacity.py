"""`transfiner benchmark capacity`: what a task costs the worker of this machine, by batch size (docs/scale.md)."""

from __future__ import annotations

import functools
import json
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from backend.devtools.load.measuring import HEIGHT_PX, STAGES, WIDTH_PX, ServedModelRun, as_png
from backend.errors import StartError
from backend.queue.keys import STATS
from backend.settings import SCENES_MODEL
from backend.versions.resolve import read_served_model

Json = dict[str, Any]
Tell = Callable[[str], object]
BATCH_SIZES = (1, 2, 4, 8)
PICTURES = 48
# A batch that came apart on a busy machine is asked for again, in all this often as many as are wanted.
TRIES = 3
STAGE_COLUMNS = ("images_s", "model_s", "regions_s", "processor_s")


@click.command()
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=SCENES_MODEL,
    help="Checkpoint directory to measure; scenes-small by default.",
)
@click.option("--batches", type=click.IntRange(2), default=30, help="Measured of each size (1, 2, 4, 8).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def capacity(model: Path, batches: int, as_json: bool) -> None:
    """Measure what a task costs the worker in batches of each size; `transfiner load` measures HTTP and queue.

    Takes minutes; everything it starts ends with it. docs/scale.md says what such figures mean for many images a day.

    \b
    Example: transfiner benchmark capacity --batches 10
    """
    figures = measure_capacity(model, BATCH_SIZES, batches, lambda line: click.echo(line, err=True))
    click.echo(json.dumps(figures) if as_json else capacity_markdown(figures), nl=as_json)


def measure_capacity(model: Path | None, sizes: Sequence[int], batches: int, tell: Tell) -> Json:
    """Figures of the machine that this runs on.

    Args:
        model: checkpoint directory; None: a model that costs nothing in its place, for tests.
        sizes: tasks of a batch; batches: of each size.

    Raises:
        StartError: a part of the service does not start, or batches come apart.
    """
    from training.synthetic.scenes import generate_scene, scene_seed

    figures: Json = {"cores": os.cpu_count(), "load average before": round(os.getloadavg()[0], 2)}
    files = [as_png(generate_scene(scene_seed("demo", number)).image) for number in range(PICTURES)]
    tell("starting the service")
    with ServedModelRun(model, files, max(sizes)) as service:
        figures["model"] = read_served_model(service.stage.model).version
        figures["batches"] = batch_seconds(service, sizes, batches, tell)
    figures["load average after"] = round(os.getloadavg()[0], 2)
    return figures


def capacity_markdown(figures: Json) -> str:
    """A table for people: median milliseconds a task by batch size."""
    alone = figures["batches"][1]
    overhead_s = statistics.median(row["request_s"] - sum(row[f"{name}_s"] for name in STAGES) for row in alone)
    lines = [
        f"{figures['cores']} cores; load average {figures['load average before']} before, "
        f"{figures['load average after']} after. Model {figures['model']}; scenes of {WIDTH_PX} x {HEIGHT_PX} px. "
        "Median ms a task:",
        "",
        "| batch of | images | network | outlines | the worker's processor |",
        "|---|---|---|---|---|",
    ]
    for size, rows in figures["batches"].items():
        medians = (1000 * statistics.median(row[name] for row in rows) / size for name in STAGE_COLUMNS)
        lines.append(f"| {size} | " + " | ".join(f"{value:.1f}" for value in medians) + " |")
    lines += ["", f"HTTP and queue add {1000 * overhead_s:.1f} ms to a lone task."]
    return "\n".join(lines) + "\n"


def batch_seconds(service: ServedModelRun, sizes: Sequence[int], count: int, tell: Tell) -> dict[int, list[Json]]:
    """`count` batches of each size through a worker that has nothing else to do; sizes take turns.

    Each has the seconds of the worker's stages, of its request from outside, and of the worker's processor on all
    cores.

    Raises:
        StartError: the worker does not take the tasks of a request as one batch.
    """
    batches: dict[int, list[Json]] = {size: [] for size in sizes}
    first, tries = 1_000_000, 0
    for size in sizes:
        first += service.ask_chunk(first, size)
    while any(len(rows) < count for rows in batches.values()):
        tries += 1
        if tries > TRIES * count:
            raise StartError(
                f"After {tries} requests of each size there are {min(map(len, batches.values()))} whole batches of "
                f"{count}: the worker takes them in parts.",
                "Is the machine too busy? Ask for fewer with --batches, or try again when it is quiet.",
            )
        for size in (size for size in sizes if len(batches[size]) < count):
            tell(f"batches of {size}: {len(batches[size])} of {count}")
            # Each request has other pictures than the one before.
            service.images = [*service.images[size:], *service.images[:size]]
            before = _batches_done(service)
            stages_s, used_s, seconds = service.measured(functools.partial(service.ask_chunk, first, size))
            first += size
            if _batches_done(service) - before == 1:
                row = {f"{name}_s": round(stages_s[name], 5) for name in STAGES}
                row |= {"request_s": round(seconds, 5), "processor_s": round(used_s["worker"], 2)}
                batches[size].append(row)
    return batches


def _batches_done(service: ServedModelRun) -> int:
    with service.stage.connection() as connection:
        return int(connection.hget(STATS, "batches") or 0)
