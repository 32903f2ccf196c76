"""`transfiner load`: what HTTP and queue cost beside the bare predictor, in one run on one machine.

Its two sides are a script around the predictor, and the whole service as processes. `transfiner benchmark capacity`:
what a task costs the worker by batch size (docs/scale.md).
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from PIL import Image
from tabulate import tabulate

from backend.devtools.harness import ServiceHarness, label_config
from backend.devtools.service_figures import in_ms, measure_prompts, memory_mib, memory_table
from backend.errors import StartError
from backend.queue.keys import STATS
from backend.settings import SCENES_MODEL, load_settings
from backend.versions.resolve import node_budget_of, read_served_model
from integration.label_studio.label_config import parse_label_config
from integration.regions.write import build_prediction
from model.checkpoints.metadata import update_metadata
from training.synthetic.scenes import generate_scene, scene_seed

Json = dict[str, Any]
WIDTH_PX, HEIGHT_PX = 384, 288
STAGES = ("images", "model", "regions")
# Tasks predicted together; how often bare and served take turns.
BATCH, ROUNDS = 4, 9


@click.command()
@click.option("--tasks", default=48, help="Tasks of each measurement; with --prompts, of the batch beside them.")
@click.option("--model", type=click.Path(path_type=Path), default=SCENES_MODEL, help="Checkpoint directory.")
@click.option("--stub", is_flag=True, help="A model that costs nothing: the queue's own limit.")
@click.option("--memory", type=click.IntRange(1), help="Only memory, with requests of this many tasks.")
@click.option("--prompts", type=click.IntRange(1), help="Instead: latency of prompts on this many images.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def load(tasks: int, model: Path, stub: bool, memory: int | None, prompts: int | None, as_json: bool) -> None:
    """Measure throughput and latency through HTTP and queue beside the bare predictor, and each process's memory.

    "bare" is a script: it decodes each image and asks the predictor; "bare with outlines" also makes the regions that
    Label Studio gets, as the service must. The overhead of a task is what its request took beyond the worker's own
    seconds for it (image, network, outlines), asked one at a time. CPU is what each process used, whoever else was
    on the machine. Start-up is from the worker's process to the first answer, a swap from replacing the checkpoint.

    --memory prints the most that API, worker and queue server need with 80 and 1,203 labels, and with 40 MP images.
    --prompts prints p50 and p95 of the first prompt on an image and of later ones, idle and beside a batch.

    \b
    Example: transfiner load --tasks 200
    Example: transfiner load --prompts 30
    Example: transfiner load --memory 5000
    """
    load_settings()
    if memory:
        rows = memory_table(None if stub else model, memory)
        click.echo(json.dumps(rows, indent=2) if as_json else tabulate(rows, "keys", "github", disable_numparse=True))
        return
    figures: Json = {"load average before": round(os.getloadavg()[0], 2)}
    figures |= (
        measure_prompts(model, prompts, tasks, BATCH) if prompts else measure_load(None if stub else model, tasks)
    )
    figures["load average after"] = round(os.getloadavg()[0], 2)
    click.echo(json.dumps(figures, indent=2) if as_json else _text(figures))


def _text(figures: Json) -> str:
    rows = []
    for name, value in figures.items():
        inner = ", ".join(f"{part} {number}" for part, number in value.items()) if isinstance(value, dict) else value
        rows.append(f"{name:26} {inner}")
    return "\n".join(rows)


def measure_load(model: Path | None, tasks: int) -> Json:
    """Measure the service beside the bare predictor, in turns; with a stub (`model` None) the service alone, once."""
    pictures = noisy_pictures(tasks)
    figures: Json = {"tasks": tasks, "batch": BATCH}
    bare = None if model is None else BarePredictor(model)
    rounds = 1 if model is None else ROUNDS
    turns: list[Json] = []
    with ServedModelRun(model, pictures, BATCH) as service:
        for number in range(rounds):
            click.echo(f"turn {number + 1} of {rounds}", err=True)
            turns.append(_turn(bare, service, pictures, number))
        for name in turns[0]:
            # The turn of the middle throughput.
            rows = sorted((turn[name] for turn in turns), key=lambda row: float(row["tasks a second"]))
            figures[name] = rows[len(rows) // 2]
        figures["start-up in s"] = {"worker to first prediction": round(service.start_up_s, 1)}
        click.echo("one task at a time", err=True)
        figures["one at a time"] = service.run_singly(max(8, tasks // 4))
        figures["memory in MiB"] = {name: memory_mib(pid) for name, pid in service.pids().items()}
        if bare:
            figures["share of bare throughput"] = _share(turns, "bare")
            figures["share of bare with outlines"] = _share(turns, "bare with outlines")
            figures["model swap in s"] = service.swap_s()
    return figures


def _turn(bare: BarePredictor | None, service: ServedModelRun, pictures: Sequence[bytes], number: int) -> Json:
    """Measure each way once; every other turn in reverse order, because the speed of a shared machine drifts."""
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


def _share(turns: list[Json], of: str) -> float:
    """Tasks a second of the service as a share of another way's: the median over the turns."""
    shares = [turn["served"]["tasks a second"] / turn[of]["tasks a second"] for turn in turns]
    return round(statistics.median(shares), 3)


def noisy_pictures(count: int) -> list[bytes]:
    """PNG files of noise with two flat rectangles; each is another one, so that nothing is answered from memory."""
    files = []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(90, 120, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
        for _ in range(2):
            top, left = int(rng.integers(0, 180)), int(rng.integers(0, 280))
            pixels[top : top + 90, left : left + 90] = rng.integers(0, 255, 3)
        files.append(as_png(pixels))
    return files


def as_png(image: np.ndarray) -> bytes:
    """A PNG file of an RGB uint8 H x W x 3 array."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def processor_s(pid: int) -> float:
    """Processor time of all threads of a process since it began."""
    # Counted behind the program's name, which may hold spaces: utime and stime.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class BarePredictor:
    """The predictor in this process: what a script would do with files that it has in memory."""

    def __init__(self, model: Path) -> None:
        from model.inference.predictor import Predictor

        settings = load_settings()
        self.predictor = Predictor.from_checkpoint(
            model,
            device=settings.device,
            score_threshold=settings.score_floor,
            node_budget=node_budget_of(read_served_model(model), settings.node_budget),
            precision=settings.precision,
        )
        self.predictor([np.zeros((320, 320, 3), np.uint8)])

    def run(self, files: Sequence[bytes], config: str = "") -> Json:
        """Decode and predict all, and with a label config also write what Label Studio would get."""
        begun, used_s = time.perf_counter(), processor_s(os.getpid())
        for start in range(0, len(files), BATCH):
            images = [np.asarray(Image.open(io.BytesIO(file))) for file in files[start : start + BATCH]]
            for image, instances in zip(images, self.predictor(images), strict=True):
                if config:
                    height, width = image.shape[:2]
                    xml, version = parse_label_config(config), self.predictor.version
                    build_prediction(instances, xml, width=width, height=height, model_version=version)
        seconds = time.perf_counter() - begun
        used_s = processor_s(os.getpid()) - used_s
        return {
            "tasks a second": round(len(files) / seconds, 3),
            "CPU in ms a task": {"script": round(used_s / len(files) * 1000, 1)},
        }


class ServedModelRun:
    """Queue server, API and one worker with pictures to predict; a context. The given checkpoint stays as it is."""

    def __init__(self, model: Path | None, files: Sequence[bytes], batch: int) -> None:
        self._folder = TemporaryDirectory()
        self.model = None if model is None else shutil.copytree(model, Path(self._folder.name) / model.name)
        self.stage = ServiceHarness(
            self.model, max_batch=str(batch), predict_deadline_s="90", worker_lost_s="60", abandoned_s="600"
        )
        self.images = []
        for number, file in enumerate(files):
            self.stage.images.files[f"{number}.png"] = file
            self.images.append(f"{self.stage.images.url}/data/files/{number}.png")
        self.labels: tuple[str, ...] = ()
        self.start_up_s = 0.0

    def __enter__(self) -> ServedModelRun:
        self.stage.__enter__()
        self.labels = read_served_model(self.stage.model).labels
        begun = time.perf_counter()
        self.stage.start_workers(1)
        self.stage.set_up_project(self.labels)
        self._ask(800_000, self.images[:1])
        self.start_up_s = time.perf_counter() - begun
        # Connections and code paths are warm before anything is measured.
        self._ask(900_000, self.images[:2])
        return self

    def __exit__(self, *of: object) -> None:
        self.stage.__exit__(*of)
        self._folder.cleanup()

    @property
    def config(self) -> str:
        """The label config of the project (XML)."""
        return label_config(self.labels)

    def pids(self) -> dict[str, int]:
        """Process ids by the name of the process."""
        assert self.stage.api
        assert self.stage.queue
        return {"api": self.stage.api.pid, "worker": self.stage.workers[0].pid, "queue server": self.stage.queue.pid}

    def run_together(self, turn: int) -> Json:
        """Predict all pictures in one request, as Label Studio's "Retrieve predictions" asks."""
        count = len(self.images)
        stages_s, used_s, seconds = self.measured(lambda: self._ask(turn * 10_000, self.images))
        return {
            "tasks a second": round(count / seconds, 3),
            "stages in ms a task": {name: round(spent_s / count * 1000, 1) for name, spent_s in stages_s.items()},
            "CPU in ms a task": {name: round(spent_s / count * 1000, 1) for name, spent_s in used_s.items()},
        }

    def run_singly(self, count: int) -> Json:
        """Predict one task a request, one request at a time, as when tasks are opened."""
        latencies, overheads = [], []
        for number in range(count):
            image = self.images[number % len(self.images)]
            stages_s, _, seconds = self.measured(functools.partial(self._ask, 500_000 + number, [image]))
            latencies.append(seconds)
            overheads.append(seconds - sum(stages_s.values()))
        return {"tasks": count, **in_ms(latencies, "latency"), **in_ms(overheads, "overhead")}

    def swap_s(self) -> dict[str, float]:
        """Replace the model by another version: seconds of the first task it predicts, and of the next."""
        assert self.model
        update_metadata(self.model, {"version": f"{read_served_model(self.model).version}-next"})
        durations_s: list[float] = []
        for number in (700_000, 700_001):
            begun = time.perf_counter()
            self._ask(number, self.images[:1])
            durations_s.append(round(time.perf_counter() - begun, 2))
        return {"first task": durations_s[0], "next task": durations_s[1]}

    def measured(self, action: Callable[[], object]) -> tuple[dict[str, float], dict[str, float], float]:
        """Run an action: seconds of the worker's stages, processor seconds of each process, and seconds in all."""
        stages_s, used_s = self._stages_s(), {name: processor_s(pid) for name, pid in self.pids().items()}
        begun = time.perf_counter()
        action()
        seconds = time.perf_counter() - begun
        now_s = self._stages_s()
        used_s = {name: processor_s(pid) - used_s[name] for name, pid in self.pids().items()}
        return {name: now_s[name] - stages_s[name] for name in STAGES}, used_s, seconds

    def batch_s(self, first_task: int, size: int) -> Json | None:
        """Seconds of the worker's stages, its processor and the request for a batch of new tasks; None if it was split.

        Each request has other pictures than the one before.
        """
        self.images = [*self.images[size:], *self.images[:size]]
        batch_count = self._stat("batches")
        images = [self.images[number % len(self.images)] for number in range(size)]
        stages_s, used_s, seconds = self.measured(functools.partial(self._ask, first_task, images))
        row = {f"{name}_s": round(stages_s[name], 5) for name in STAGES}
        row |= {"request_s": round(seconds, 5), "processor_s": round(used_s["worker"], 2)}
        return row if self._stat("batches") - batch_count == 1 else None

    def _stages_s(self) -> dict[str, float]:
        return {name: self._stat(f"stage_{name}") for name in STAGES}

    def _stat(self, name: str) -> float:
        with self.stage.connection() as connection:
            return float(connection.hget(STATS, name) or 0)

    def _ask(self, first_task: int, images: Sequence[str]) -> None:
        facts = self.stage.predict(dict(enumerate(images, first_task)), self.labels)
        if len(facts["results"]) != len(images):
            raise click.ClickException("The deadline passed first; ask for fewer --tasks.")
        if facts.get("errors"):
            raise click.ClickException(f"Tasks failed: {json.dumps(facts['errors'][0])}")


BATCH_SIZES = (1, 2, 4, 8)
PICTURES = 48
# A batch that came apart on a busy machine is asked for again, in all this often as many as are wanted.
TRIES = 3
STAGE_COLUMNS = {
    **{"images_s": "images", "model_s": "network", "regions_s": "outlines"},
    **{"processor_s": "the worker's processor"},
}


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=SCENES_MODEL, help="Checkpoint directory.")
@click.option("--batches", type=click.IntRange(2), default=30, help="Measured of each size (1, 2, 4, 8).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def capacity(model: Path, batches: int, as_json: bool) -> None:
    """Measure what a task costs the worker in batches of each size; `transfiner load` measures HTTP and queue.

    Takes minutes; everything it starts ends with it. docs/scale.md says what such figures mean for many images a day.

    \b
    Example: transfiner benchmark capacity --batches 10
    """
    figures = measure_capacity(model, BATCH_SIZES, batches)
    click.echo(json.dumps(figures) if as_json else capacity_markdown(figures), nl=as_json)


def measure_capacity(model: Path | None, sizes: Sequence[int], count: int) -> Json:
    """Seconds of `count` batches of each size, through a worker that has nothing else to do; sizes take turns.

    Args:
        model: checkpoint directory; None: a model that costs nothing in its place, for tests.

    Raises:
        StartError: a part of the service does not start, or the worker takes the tasks of a request in parts.
    """
    figures: Json = {"cores": os.cpu_count(), "load average before": round(os.getloadavg()[0], 2)}
    files = [as_png(generate_scene(scene_seed("demo", number)).image) for number in range(PICTURES)]
    batches: dict[int, list[Json]] = {size: [] for size in sizes}
    first_task = 1_000_000
    with ServedModelRun(model, files, max(sizes)) as service:
        figures["model"] = read_served_model(service.stage.model).version
        for turn in range(1 + TRIES * count):  # the first one is to get warm
            for size in (size for size in sizes if len(batches[size]) < count):
                click.echo(f"batches of {size}: {len(batches[size])} of {count}", err=True)
                row = service.batch_s(first_task, size)
                first_task += size
                batches[size] += [row] if row and turn else []
    if (least := min(map(len, batches.values()))) < count:
        raise StartError(
            f"After {TRIES * count} requests {least} of {count} batches were whole: the worker takes them in parts.",
            "Is the machine too busy? Ask for fewer with --batches, or try again when it is quiet.",
        )
    return {**figures, "batches": batches, "load average after": round(os.getloadavg()[0], 2)}


def capacity_markdown(figures: Json) -> str:
    """A table for people: median milliseconds a task by batch size."""
    alone = figures["batches"][1]
    overhead_s = statistics.median(row["request_s"] - sum(row[f"{name}_s"] for name in STAGES) for row in alone)
    medians_ms = [
        [size, *(1000 * statistics.median(row[name] for row in rows) / size for name in STAGE_COLUMNS)]
        for size, rows in figures["batches"].items()
    ]
    lines = [
        f"{figures['cores']} cores; load average {figures['load average before']} before, "
        f"{figures['load average after']} after. Model {figures['model']}; scenes of {WIDTH_PX} x {HEIGHT_PX} px. "
        "Median ms a task:",
        "",
        tabulate(medians_ms, ("batch of", *STAGE_COLUMNS.values()), "github", floatfmt=".1f"),
        "",
        f"HTTP and queue add {1000 * overhead_s:.1f} ms to a lone task.",
    ]
    return "\n".join(lines) + "\n"
