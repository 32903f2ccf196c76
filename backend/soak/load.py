"""The `load` command: what HTTP and queue cost beside the bare predictor, in one run on one machine."""

from __future__ import annotations

import base64
import io
import json
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import requests
from PIL import Image

from backend.served_model import read_served_model
from backend.settings import SHIPPED_MODEL, load_settings
from backend.soak.stage import PROJECT, Stage, label_config

Json = dict[str, Any]
EDGES_PX = (384, 288)


@click.command()
@click.option("--tasks", default=64, show_default=True, help="Tasks of each measurement.")
@click.option("--batch", default=4, show_default=True, help="Tasks predicted together.")
@click.option("--model", type=click.Path(path_type=Path), default=SHIPPED_MODEL, help="Checkpoint directory.")
@click.option("--stub", is_flag=True, help="A model that costs nothing: the queue's own limit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def load(tasks: int, batch: int, model: Path, stub: bool, as_json: bool) -> None:
    """Measure throughput and latency through HTTP and queue beside the bare predictor, and each process's memory.

    \b
    Example: transfiner load --tasks 200
    """
    load_settings()
    images = _images(tasks)
    figures: Json = {"tasks": tasks, "batch": batch}
    if not stub:
        figures["bare"] = _bare(model, images, batch)
    figures |= _served(None if stub else model, images, batch)
    if not stub:
        figures["share of bare throughput"] = round(
            figures["batch of tasks"]["tasks a second"] / figures["bare"]["tasks a second"], 3
        )
    click.echo(json.dumps(figures, indent=2) if as_json else _text(figures))


def _images(count: int) -> list[bytes]:
    """PNG files of noise with two flat rectangles; each is another image, so that nothing is answered from memory."""
    files = []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(90, 120, (EDGES_PX[1], EDGES_PX[0], 3), dtype=np.uint8)
        for _ in range(2):
            top, left = int(rng.integers(0, 180)), int(rng.integers(0, 280))
            pixels[top : top + 90, left : left + 90] = rng.integers(0, 255, 3)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    return files


def _bare(model: Path, files: Sequence[bytes], batch: int) -> Json:
    """The predictor in this process, with decoding: what a script would do."""
    from model.predictor import Predictor

    settings = load_settings()
    predictor = Predictor.from_checkpoint(model, device=settings.device, score_threshold=settings.score_floor)
    predictor([np.zeros((320, 320, 3), np.uint8)])
    begun = time.perf_counter()
    for start in range(0, len(files), batch):
        predictor([np.asarray(Image.open(io.BytesIO(file))) for file in files[start : start + batch]])
    seconds = time.perf_counter() - begun
    return {"seconds": round(seconds, 2), "tasks a second": round(len(files) / seconds, 2)}


def _served(model: Path | None, files: Sequence[bytes], batch: int) -> Json:
    with Stage(model, max_batch=str(batch), predict_deadline_s="90", worker_lost_s="60") as stage:
        (worker,) = stage.start_workers(1)
        labels = read_served_model(stage.model).labels
        stage.set_up_project(labels)
        whole = _asked(stage, files, labels, first=0, chunk=len(files), clients=1)
        single = _asked(stage, files[: max(8, len(files) // 4)], labels, first=100_000, chunk=1, clients=1)
        assert stage.api
        assert stage.queue
        memory = {
            "api": _memory_mib(_child_of(stage.api.pid)),
            "worker": _memory_mib(worker.pid),
            "queue server": _memory_mib(stage.queue.pid),
        }
        return {"batch of tasks": whole, "one at a time": single, "memory in MiB": memory}


def _asked(
    stage: Stage, files: Sequence[bytes], labels: tuple[str, ...], *, first: int, chunk: int, clients: int
) -> Json:
    """Ask for all files; the overhead of a task is what its request took beyond the model's own seconds."""
    before = _stages(stage)
    bodies = [
        _body(files[start : start + chunk], labels, first + start) for start in range(0, len(files), chunk)
    ]
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        latencies = list(pool.map(lambda body: _ask(stage, body), bodies))
    seconds = time.perf_counter() - begun
    model_s = (_stages(stage)["model"] - before["model"]) / len(files)
    return {
        "tasks a second": round(len(files) / seconds, 2),
        "latency p50 in ms": round(statistics.median(latencies) * 1000, 1),
        "latency p95 in ms": round(sorted(latencies)[int(len(latencies) * 0.95)] * 1000, 1),
        "model in ms a task": round(model_s * 1000, 1),
        "overhead in ms a task": round((seconds / len(files) - model_s) * 1000, 1),
    }


def _body(files: Sequence[bytes], labels: tuple[str, ...], first: int) -> Json:
    uris = [f"data:image/png;base64,{base64.b64encode(file).decode()}" for file in files]
    tasks = [{"id": first + number, "data": {"image": uri}} for number, uri in enumerate(uris)]
    return {
        "tasks": tasks,
        "project": PROJECT,
        "label_config": label_config(labels),
        "params": {"context": None},
    }


def _ask(stage: Stage, body: Json) -> float:
    begun = time.perf_counter()
    answer = requests.post(f"{stage.address}/predict", json=body, timeout=600)
    answer.raise_for_status()
    if len(answer.json()["results"]) != len(body["tasks"]):
        raise click.ClickException("The deadline passed first; ask for fewer --tasks.")
    return time.perf_counter() - begun


def _stages(stage: Stage) -> dict[str, float]:
    with stage.connection() as connection:
        figures = connection.hgetall("transfiner:stats")
    return {"model": float(figures.get(b"stage_model", 0))}


def _child_of(pid: int) -> int:
    """gunicorn's arbiter does nothing but watch; its child answers."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(children[0]) if children else pid


def _memory_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGESIZE") / 2**20, 1)


def _text(figures: Json) -> str:
    rows = []
    for name, value in figures.items():
        inner = ", ".join(f"{n} {v}" for n, v in value.items()) if isinstance(value, dict) else value
        rows.append(f"{name:26} {inner}")
    return "\n".join(rows)
