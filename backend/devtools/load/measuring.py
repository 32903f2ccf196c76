"""The two sides of `transfiner load`: a script around the predictor, and the whole service as processes."""

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

from backend.devtools.soak.harness import ServiceHarness, label_config
from backend.queue.keys import STATS
from backend.settings import load_settings
from backend.versions.resolve import node_budget_of, read_served_model
from integration.label_studio.label_config import parse_label_config
from integration.regions.write import build_prediction
from model.checkpoints.metadata import update_metadata

Json = dict[str, Any]
WIDTH_PX, HEIGHT_PX = 384, 288
STAGES = ("images", "model", "regions")


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


def memory_mib(pid: int, field: str = "VmRSS") -> float:
    """Resident memory of a process; with VmHWM the most that it had."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return round(int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024, 1)


def processor_s(pid: int) -> float:
    """Processor time of all threads of a process since it began."""
    # Counted behind the program's name, which may hold spaces: utime and stime.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_ms(seconds: Sequence[float], name: str) -> Json:
    """Median and 95th percentile of some durations, in milliseconds."""
    return {
        f"{name} p50 in ms": round(statistics.median(seconds) * 1000, 1),
        f"{name} p95 in ms": round(float(np.percentile(seconds, 95)) * 1000, 1),
    }


class BarePredictor:
    """The predictor in this process: what a script would do with files that it has in memory."""

    def __init__(self, model: Path, batch: int) -> None:
        from model.predictor import Predictor

        settings = load_settings()
        self.batch = batch
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
        for start in range(0, len(files), self.batch):
            images = [np.asarray(Image.open(io.BytesIO(file))) for file in files[start : start + self.batch]]
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
        """Of each process."""
        assert self.stage.api
        assert self.stage.queue
        return {"api": self.stage.api.pid, "worker": self.stage.workers[0].pid, "queue server": self.stage.queue.pid}

    def run_together(self, turn: int) -> Json:
        """All pictures in one request, as Label Studio's "Retrieve predictions" asks."""
        count = len(self.images)
        stages_s, used_s, seconds = self.measured(lambda: self._ask(turn * 10_000, self.images))
        return {
            "tasks a second": round(count / seconds, 3),
            "stages in ms a task": {name: round(s / count * 1000, 1) for name, s in stages_s.items()},
            "CPU in ms a task": {name: round(s / count * 1000, 1) for name, s in used_s.items()},
        }

    def run_singly(self, count: int) -> Json:
        """One task a request, one request at a time, as when tasks are opened."""
        latencies, overheads = [], []
        for number in range(count):
            image = self.images[number % len(self.images)]
            stages_s, _, seconds = self.measured(functools.partial(self._ask, 500_000 + number, [image]))
            latencies.append(seconds)
            overheads.append(seconds - sum(stages_s.values()))
        return {"tasks": count, **in_ms(latencies, "latency"), **in_ms(overheads, "overhead")}

    def swap_s(self) -> dict[str, float]:
        """Another version takes the model's place: seconds of the first task it predicts, and of the one after."""
        assert self.model
        update_metadata(self.model, {"version": f"{read_served_model(self.model).version}-next"})
        taken: list[float] = []
        for number in (700_000, 700_001):
            begun = time.perf_counter()
            self._ask(number, self.images[:1])
            taken.append(round(time.perf_counter() - begun, 2))
        return {"first task": taken[0], "next task": taken[1]}

    def ask_chunk(self, first: int, count: int) -> int:
        """One request for `count` new tasks; how many they were."""
        self._ask(first, [self.images[number % len(self.images)] for number in range(count)])
        return count

    def measured(self, act: Callable[[], object]) -> tuple[dict[str, float], dict[str, float], float]:
        """Seconds of the worker's stages, of each process's processor time, and of all of it."""
        stages_s, used_s = self._stages_s(), {name: processor_s(pid) for name, pid in self.pids().items()}
        begun = time.perf_counter()
        act()
        seconds = time.perf_counter() - begun
        now_s = self._stages_s()
        used_s = {name: processor_s(pid) - used_s[name] for name, pid in self.pids().items()}
        return {name: now_s[name] - stages_s[name] for name in STAGES}, used_s, seconds

    def _stages_s(self) -> dict[str, float]:
        with self.stage.connection() as connection:
            figures = connection.hgetall(STATS)
        return {name: float(figures.get(f"stage_{name}".encode(), 0)) for name in STAGES}

    def _ask(self, first: int, images: Sequence[str]) -> None:
        facts = self.stage.predict(dict(enumerate(images, first)), self.labels)
        if len(facts["results"]) != len(images):
            raise click.ClickException("The deadline passed first; ask for fewer --tasks.")
        if facts.get("errors"):
            raise click.ClickException(f"Tasks failed: {json.dumps(facts['errors'][0])}")
