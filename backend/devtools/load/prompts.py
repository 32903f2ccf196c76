"""Latency of prompts through HTTP and queue, with and without a batch beside them."""

from __future__ import annotations

import io
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from backend.devtools.load.measuring import Json
from backend.devtools.programs import memory_mib
from backend.devtools.soak.harness import PROJECT, ServiceHarness, label_config
from backend.errors import StartError
from backend.queue.keys import PREDICT_LANE
from backend.versions.resolve import read_served_model
from training.synthetic.scenes import generate_scene, scene_seed

WIDTH_PX, HEIGHT_PX = 640, 480
LABEL = "thing"
#: Later prompts on each image.
LATER = 4


def scene_pictures(count: int) -> list[bytes]:
    """JPEG files of generated scenes, 640 x 480."""
    files = []
    for number in range(count):
        file = io.BytesIO()
        scene = Image.fromarray(generate_scene(scene_seed("demo", number)).image)
        scene.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BILINEAR).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def measure_prompts(model: Path, images: int, batch_tasks: int, max_batch: int) -> Json:
    """Milliseconds of first and later prompts, idle and with `batch_tasks` tasks in the queue; memory of each process.

    A prompt is one request to /predict, from sending it to its answer: a box first, then clicks on the same image.

    Raises:
        StartError: the batch ended before the prompts did, so nothing was measured beside it.
    """
    files = scene_pictures(images)
    with ServiceHarness(
        model, max_batch=str(max_batch), predict_deadline_s="1", worker_lost_s="60", abandoned_s="6000"
    ) as service:
        service.start_interactive_worker()
        service.start_workers(1, is_nice=True)
        labels = (LABEL, *read_served_model(model).labels)
        service.set_up_project(labels)
        config = label_config(labels)
        for number, file in enumerate(files):
            service.images.files[f"{number}.jpg"] = file
        _prompt_image(service, config, 0, 900_000, random.Random(0))  # connections and code paths are warm
        figures: Json = {"image": f"{WIDTH_PX} x {HEIGHT_PX}", "images": images, "later prompts an image": LATER}
        figures["without a batch"] = _prompts(service, config, images, 100_000)
        _send_batch(service, config, images, batch_tasks)
        before = _waiting(service)
        figures[f"beside {batch_tasks} tasks"] = _prompts(service, config, images, 200_000)
        if not (left := _waiting(service)):
            raise StartError("The batch ended before the prompts.", "Ask for more --tasks.")
        figures["tasks waiting"] = {"before": before, "after": left}
        figures["memory in MiB"] = {
            "interactive worker": memory_mib(service.workers[0].pid),
            "worker": memory_mib(service.workers[1].pid),
        }
    return figures


def _send_batch(service: ServiceHarness, config: str, images: int, count: int) -> None:
    """Tasks as one request, which is deferred after a second; they stay in the queue."""
    tasks = [{"id": number, "data": {"image": _address(service, number % images)}} for number in range(count)]
    _ask(service, config, tasks, None)


def _waiting(service: ServiceHarness) -> int:
    with service.connection() as connection:
        return int(connection.llen(PREDICT_LANE))


def _prompts(service: ServiceHarness, config: str, images: int, first_id: int) -> Json:
    rng = random.Random(first_id)
    first, later = [], []
    for number in range(images):
        seconds = _prompt_image(service, config, number, first_id + number, rng)
        first.append(seconds[0])
        later += seconds[1:]
    return {**_percentiles("first", first), **_percentiles("later", later)}


def _prompt_image(service: ServiceHarness, config: str, image: int, task: int, rng: random.Random) -> list[float]:
    """Seconds of each prompt: a box, then a click more each time."""
    tasks = [{"id": task, "data": {"image": _address(service, image)}}]
    box = {
        "x": rng.uniform(0, 60),
        "y": rng.uniform(0, 60),
        "width": rng.uniform(15, 40),
        "height": rng.uniform(15, 40),
    }
    regions: list[Json] = [{"id": "box", "type": "rectanglelabels", "value": {**box, "rectanglelabels": [LABEL]}}]
    seconds = []
    for number in range(1 + LATER):
        begun = time.perf_counter()
        _ask(service, config, tasks, {"result": regions})
        seconds.append(time.perf_counter() - begun)
        place: Json = {"x": box["x"] + box["width"] * rng.random(), "y": box["y"] + box["height"] * rng.random()}
        point: dict[str, Any] = {"id": f"point-{number}", "type": "keypointlabels", "is_positive": number % 2 == 0}
        regions.append({**point, "value": {**place, "width": 0.2, "keypointlabels": [LABEL]}})
        time.sleep(rng.uniform(0.1, 0.4))  # a person needs a moment, and batches come and go meanwhile
    return seconds


def _address(service: ServiceHarness, number: int) -> str:
    return f"{service.images.url}/data/files/{number}.jpg"


def _ask(service: ServiceHarness, config: str, tasks: list[dict[str, Any]], context: dict[str, Any] | None) -> None:
    body = {"tasks": tasks, "project": PROJECT, "label_config": config, "params": {"context": context}}
    answer = requests.post(f"{service.address}/predict", json=body, timeout=120)
    if not answer.ok:
        raise StartError(f"A request failed: {answer.status_code} {answer.text[:300]}")


def _percentiles(name: str, seconds: list[float]) -> Json:
    return {
        f"{name} p50 in ms": round(statistics.median(seconds) * 1000, 1),
        f"{name} p95 in ms": round(float(np.percentile(seconds, 95)) * 1000, 1),
    }
