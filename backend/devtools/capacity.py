"""`transfiner benchmark capacity`: what a task costs on this machine, in every part of the service (docs/scale.md)."""

from __future__ import annotations

import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import requests
from redis import Redis

from backend.devtools.load.measuring import HEIGHT_PX, STAGES, WIDTH_PX, ServedModelRun
from backend.devtools.programs import as_png, processor_s, running_program
from backend.devtools.soak.harness import PROJECT, ServiceHarness
from backend.errors import ServiceError, StartError
from backend.processes.embedded_redis import free_port
from backend.processes.label_studio_server import COLD_START_S, LabelStudioServer
from backend.processes.waiting import wait_until
from backend.queue.connection import text
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.keys import STATS, task_key
from backend.queue.recovery import living_workers
from backend.settings import SCENES_MODEL, load_settings
from backend.versions.resolve import read_served_model
from integration.label_studio.client import LabelStudioClient
from model.files import write_text

Json = dict[str, Any]
Tell = Callable[[str], object]
# A batch that came apart on a busy machine is asked for again, in all this often as many as are wanted.
TRIES = 3
TURNS = 3
# Many tasks in one request take at most about this long; whoever asks is answered within 90 s.
TOGETHER_S, LEAST_TASKS = 30.0, 8
TASK_CHUNK, FILE_CHUNK = 250, 8
STAGE_COLUMNS = ("images_s", "model_s", "regions_s", "processor_s")


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        batch_sizes: tasks of a batch; the largest is also that of the check with many tasks.
        batches: of each size.
        pictures: different ones, which are also the tasks of the check.
        tasks: of the queue's own limit, and of Label Studio's imports.
        singles: requests of one task, and predictions that Label Studio asks for.
    """

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    batches: int = 30
    pictures: int = 48
    tasks: int = 1000
    singles: int = 200


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
    sizes = Sizes(batches=batches, tasks=tasks, singles=max(10, tasks // 5))
    figures = measure_capacity(model, sizes, with_label_studio, lambda line: click.echo(line, err=True))
    write_text(out / "figures.json", json.dumps(figures, indent=2) + "\n")
    write_text(out / "report.md", capacity_markdown(figures))
    click.echo(json.dumps(figures) if as_json else capacity_markdown(figures))


def measure_capacity(model: Path | None, sizes: Sizes, with_label_studio: bool, tell: Tell) -> Json:
    """Figures of the machine that this runs on; what cannot be measured is left out with the reason.

    Args:
        model: checkpoint directory; None: a model that costs nothing in its place, for tests.

    Raises:
        StartError: a part of the service does not start, or batches come apart.
    """
    from training.synthetic.scenes import generate_scene, scene_seed

    figures: Json = {"taken": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "machine": _machine()}
    files = [as_png(generate_scene(scene_seed("demo", number)).image) for number in range(sizes.pictures)]
    figures["pictures"] = (
        f"generated scenes, {WIDTH_PX} x {HEIGHT_PX} px, PNG of {sum(map(len, files)) // len(files)} B"
    )
    figures["not_measured"] = {}
    tell("starting the service")
    with ServedModelRun(model, files, max(sizes.batch_sizes)) as service:
        served = read_served_model(service.stage.model)
        with service.stage.connection() as connection:
            models = [entry for facts in living_workers(connection).values() for entry in facts.get("models", ())]
        figures["model"] = f"{served.name} {served.version} on {models[0]['device'] if models else 'no device'}"
        figures["batches"] = batch_seconds(service, sizes.batch_sizes, sizes.batches, tell)
        tell("many tasks at once")
        figures["together"], bytes_finished = many_tasks(service, figures["batches"][1])
        rows, config = _predictions(service, sizes.pictures), service.config
    with ServedModelRun(None, files, load_settings().max_batch) as stub:
        figures["queue"] = _queue_figures(stub, sizes.tasks, sizes.singles, tell)
        figures["queue"]["bytes_waiting"] = _bytes_waiting(config, sizes.tasks)
        figures["queue"]["bytes_finished"] = bytes_finished
        if with_label_studio:
            try:
                figures["label_studio"] = _label_studio_figures(stub, rows, config, files, sizes, tell)
            except ServiceError as error:
                # The other figures took minutes; they are of use without this one.
                figures["not_measured"]["label_studio"] = str(error)
        else:
            figures["not_measured"]["label_studio"] = "left out (--no-label-studio)"
    figures["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    return figures


def capacity_markdown(figures: Json) -> str:
    """Tables for people: median milliseconds a task by batch size, then rates and bytes."""
    machine, alone = figures["machine"], figures["batches"][1]
    overhead_s = statistics.median(row["request_s"] - sum(row[f"{name}_s"] for name in STAGES) for row in alone)
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; load average "
        f"{machine['load_before']} before, {machine['load_after']} after. Model {figures['model']}; "
        f"{figures['pictures']}. Median ms a task:",
        "",
        "| batch of | images | network | outlines | the worker's processor |",
        "|---|---|---|---|---|",
    ]
    for size, rows in figures["batches"].items():
        medians = (1000 * statistics.median(row[name] for row in rows) / size for name in STAGE_COLUMNS)
        lines.append(f"| {size} | " + " | ".join(f"{value:.1f}" for value in medians) + " |")
    lines += ["", f"HTTP and queue add {1000 * overhead_s:.1f} ms to a lone task."]
    for part in ("together", "queue", "label_studio"):
        lines += [f"- {part}, {name}: {value}" for name, value in figures.get(part, {}).items()]
    lines += [f"- not measured: {name} ({reason})" for name, reason in figures["not_measured"].items()]
    return "\n".join(lines) + "\n"


def _machine() -> Json:
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in facts if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


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


def many_tasks(service: ServedModelRun, alone: Sequence[Json]) -> tuple[Json, float]:
    """All pictures in one request, the median of some turns; and bytes of a finished task in the queue server.

    Args:
        alone: single tasks, measured. Where they are slow there are fewer pictures, so that the answer is in time.
    """
    service.images = service.images[
        : max(LEAST_TASKS, int(TOGETHER_S / statistics.mean(row["request_s"] for row in alone)))
    ]
    count = len(service.images)
    with service.stage.connection() as connection:
        before = stored_bytes(connection)
        rates = [float(service.run_together(turn)["tasks a second"]) for turn in range(1, TURNS + 1)]
        grown = stored_bytes(connection) - before
    return {"tasks": count, "tasks_a_second": statistics.median(rates)}, round(grown / count / TURNS, 1)


def stored_bytes(connection: Redis) -> int:
    """Bytes of all keys in the queue server."""
    return sum(int(connection.memory_usage(key, samples=0) or 0) for key in connection.scan_iter(count=1000))


def _predictions(service: ServedModelRun, most: int) -> list[Json]:
    """Finished predictions as they would go to Label Studio."""
    with service.stage.connection() as connection:
        keys = sorted(text(key) for key in connection.scan_iter(f"{task_key('')}*", count=1000))
        kept = [connection.hget(key, "prediction") for key in keys]
    return [json.loads(value) for value in kept if value][:most]


def _queue_figures(service: ServedModelRun, tasks: int, singles: int, tell: Tell) -> Json:
    """What HTTP and queue cost with a model that costs nothing: tasks a second, processor ms a task by process."""

    def one_by_one() -> None:
        """As when annotators open tasks: Label Studio asks for health and setup before each prediction."""
        for number in range(singles):
            service.stage.get("/health")
            service.stage.set_up_project(("thing",))
            service.ask_chunk(4_000_000 + number, 1)

    tell(f"the queue's own limit: {tasks} tasks in a request")
    service.ask_chunk(2_000_000, tasks)  # connections, code paths, pictures in memory
    _, bulk_s, seconds = service.measured(lambda: service.ask_chunk(3_000_000, tasks))
    tell(f"the queue's own limit: {singles} requests of a task")
    _, single_s, _ = service.measured(one_by_one)
    return {
        "tasks": tasks,
        "tasks_a_second": round(tasks / seconds, 1),
        "processor_ms_in_bulk": {name: round(1000 * used_s / tasks, 3) for name, used_s in bulk_s.items()},
        "processor_ms_one_by_one": {name: round(1000 * used_s / singles, 3) for name, used_s in single_s.items()},
    }


def _bytes_waiting(label_config: str, count: int) -> float:
    """That a task takes in the queue server while nobody has taken it."""
    stage = ServiceHarness()
    try:
        stage.start_queue()
        with stage.connection() as connection:
            before = stored_bytes(connection)
            addresses = [f"http://127.0.0.1:8080/data/upload/7/{number}.png" for number in range(count)]
            jobs = [
                PredictionJob(PROJECT, {"id": number, "data": {"image": url}}, url, label_config, "waiting-1")
                for number, url in enumerate(addresses)
            ]
            JobQueue(connection, load_settings()).submit(jobs)
            return round((stored_bytes(connection) - before) / count, 1)
    finally:
        stage.__exit__()


def _label_studio_figures(
    stub: ServedModelRun, rows: Sequence[Json], label_config: str, files: Sequence[bytes], sizes: Sizes, tell: Tell
) -> Json:
    """What a fresh Label Studio with SQLite takes in, a second and in processor ms, and bytes in its database.

    Args:
        stub: our service with a model that costs nothing, for what Label Studio asks by itself.
        rows: real predictions, cycled through. label_config: that fits them. files: pictures.

    Raises:
        StartError: Label Studio is not installed, does not get ready, or stores something else than it was given.
    """
    with TemporaryDirectory() as folder:
        server = LabelStudioServer(Path(folder), free_port())
        server.check_installed()
        with running_program("label-studio", server.command, server.environment, Path(folder)) as process:
            tell("Label Studio starts, which takes a minute")
            wait_until(server.is_up, "Label Studio", COLD_START_S, poll_s=1.0, process=process)
            client = LabelStudioClient(server.url, server.login.token, timeout_s=600.0)
            figures: Json = {"version": requests.get(f"{server.url}/api/version", timeout=60).json().get("release")}

            def timed(name: str, count: int, act: Callable[[], Any]) -> Any:
                tell(f"Label Studio: {name}, {count}")
                used_s, begun_s = processor_s(process.pid), time.perf_counter()
                outcome = act()
                figures[f"{name}_a_second"] = round(count / (time.perf_counter() - begun_s), 1)
                figures[f"{name}_processor_ms"] = round((processor_s(process.pid) - used_s) / count * 1000, 2)
                return outcome

            def database_bytes() -> int:
                return sum(path.stat().st_size for path in server.folder.glob("*.sqlite3*"))

            def import_tasks(project: int, count: int) -> list[int]:
                images = [stub.images[number % len(stub.images)] for number in range(count)]
                tasks = [{"data": {"image": image}} for image in images]
                parts = [tasks[start : start + TASK_CHUNK] for start in range(0, count, TASK_CHUNK)]
                return [int(task_id) for part in parts for task_id in client.import_tasks(project, part)["task_ids"]]

            project = int(client.create_project(title="Capacity: pushed", label_config=label_config)["id"])
            empty = database_bytes()
            ids = timed("tasks_imported", sizes.tasks, lambda: import_tasks(project, sizes.tasks))
            with_tasks = database_bytes()
            predictions = [{"task": task_id, **rows[number % len(rows)]} for number, task_id in enumerate(ids)]
            push = functools.partial(client.import_predictions, project, predictions, chunk=load_settings().push_chunk)
            _expect(timed("predictions_imported", sizes.tasks, push), sizes.tasks)
            figures["bytes_a_task"] = round((with_tasks - empty) / sizes.tasks, 1)
            figures["bytes_a_prediction"] = round((database_bytes() - with_tasks) / sizes.tasks, 1)
            timed("uploads", len(files), lambda: _upload(client, project, files))
            asked = int(client.create_project(title="Capacity: asked for", label_config=stub.config)["id"])
            import_tasks(asked, sizes.singles)
            client.create_backend(asked, url=stub.stage.address, title="stub-1")
            timed("predictions_retrieved", sizes.singles, lambda: client.retrieve_predictions(asked))
            _expect(len(client.list_predictions(project_id=asked)), sizes.singles)
            return figures


def _upload(client: LabelStudioClient, project: int, files: Sequence[bytes]) -> None:
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"scene-{number:03d}.png" for number in range(len(files))]
        for path, file in zip(paths, files, strict=True):
            path.write_bytes(file)
        for start in range(0, len(paths), FILE_CHUNK):
            client.upload_files(project, paths[start : start + FILE_CHUNK])


def _expect(stored: int, count: int) -> None:
    if stored != count:
        raise StartError(
            f"Label Studio stored {stored} of {count} predictions.", "Is its version the one that is pinned?"
        )
