"""The real worker with the real model, batch by batch, and what its tasks take in the queue server."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from redis import Redis

from backend.devtools.capacity.figures import StageTimes, Together
from backend.devtools.load.measuring import STAGES, ServedModelRun
from backend.devtools.programs import as_png, processor_s
from backend.errors import StartError
from backend.queue.connection import text
from backend.queue.keys import STATS, task_key
from backend.queue.recovery import living_workers

Json = dict[str, Any]
Report = Callable[[str], object]
# A batch that came apart on a busy machine is asked for again, in all this often as many as are wanted.
TRIES = 3
# Many tasks in one request take at most about this long; whoever asks is answered within 90 s.
TOGETHER_S, LEAST_TASKS = 30.0, 8


def scene_files(count: int) -> list[bytes]:
    """PNG files of generated scenes, what the shipped model is for."""
    from training.synthetic.scenes import generate_scene, scene_seed

    return [as_png(generate_scene(scene_seed("demo", number)).image) for number in range(count)]


def batch_seconds(
    service: ServedModelRun, sizes: Sequence[int], count: int, tell: Report
) -> dict[int, list[StageTimes]]:
    """`count` batches of each size through a worker that has nothing else to do; sizes take turns.

    Raises:
        StartError: the worker does not take the tasks of a request as one batch.
    """
    batches: dict[int, list[StageTimes]] = {size: [] for size in sizes}
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
            row = _batch(service, first, size)
            first += size
            batches[size] += [row] if row else []
    return batches


def _batch(service: ServedModelRun, first: int, size: int) -> StageTimes | None:
    """One request; None when it was not one batch."""
    # Each request has other pictures than the one before.
    service.images = [*service.images[size:], *service.images[:size]]
    with service.stage.connection() as connection:
        before = _stats(connection)
        used_s = processor_s(service.pids()["worker"])
        begun = time.perf_counter()
        service.ask_chunk(first, size)
        seconds = time.perf_counter() - begun
        used_s = processor_s(service.pids()["worker"]) - used_s
        after = _stats(connection)
    if after["batches"] - before["batches"] != 1:
        return None
    stages = {f"{name}_s": round(after[f"stage_{name}"] - before[f"stage_{name}"], 5) for name in STAGES}
    return StageTimes(**stages, request_s=round(seconds, 5), processor_s=round(used_s, 2))


def _stats(connection: Redis) -> dict[str, float]:
    names = ("batches", *(f"stage_{name}" for name in STAGES))
    return {name: float(value or 0) for name, value in zip(names, connection.hmget(STATS, names), strict=True)}


def many_tasks_seconds(service: ServedModelRun, alone: Sequence[StageTimes], turns: int = 3) -> tuple[Together, float]:
    """All pictures in one request, the median of some turns; and bytes of a finished task in the queue server.

    Args:
        alone: single tasks, measured. Where they are slow there are fewer pictures, so that the answer is in time.
    """
    count = max(LEAST_TASKS, int(TOGETHER_S / statistics.mean(row.request_s for row in alone)))
    service.images = service.images[:count]
    count = len(service.images)
    with service.stage.connection() as connection:
        before = stored_bytes(connection)
        rates = [float(service.run_together(turn)["tasks a second"]) for turn in range(1, turns + 1)]
        grown = stored_bytes(connection) - before
    largest = int(service.stage.settings["max_batch"])
    together = Together(tasks=count, max_batch=largest, tasks_a_second=statistics.median(rates))
    return together, round(grown / count / turns, 1)


def stored_bytes(connection: Redis) -> int:
    """Bytes of all keys in the queue server."""
    return sum(int(connection.memory_usage(key, samples=0) or 0) for key in connection.scan_iter(count=1000))


def predictions(service: ServedModelRun, most: int) -> list[Json]:
    """Finished predictions as they would go to Label Studio."""
    with service.stage.connection() as connection:
        keys = sorted(text(key) for key in connection.scan_iter(f"{task_key('')}*", count=1000))
        kept = [connection.hget(key, "prediction") for key in keys]
    return [json.loads(value) for value in kept if value][:most]


def device(service: ServedModelRun) -> str:
    """Device of the worker's network."""
    with service.stage.connection() as connection:
        for facts in living_workers(connection).values():
            for model in facts.get("models", ()):
                return str(model["device"])
    return ""


def model_name(directory: Path) -> str:
    from backend.versions.served_model import read_served_model

    served = read_served_model(directory)
    return f"{served.name} {served.version}"
