"""Latency of prompts through HTTP and queue, with and without a batch beside them."""

from __future__ import annotations

import io
import random
import time
from pathlib import Path

from PIL import Image

from backend.devtools.load.measuring import Json, in_ms, memory_mib
from backend.devtools.soak.harness import ServiceHarness
from backend.errors import StartError
from backend.queue.keys import PREDICT_LANE
from backend.versions.resolve import read_served_model
from training.synthetic.scenes import generate_scene, scene_seed

WIDTH_PX, HEIGHT_PX = 640, 480
LABEL = "thing"
#: Later prompts on each image.
LATER = 4


def measure_prompts(model: Path, images: int, batch_tasks: int, max_batch: int) -> Json:
    """Milliseconds of first and later prompts, idle and with `batch_tasks` tasks in the queue; memory of each process.

    A prompt is one request to /predict, from sending it to its answer: a box first, then clicks on the same image.

    Raises:
        StartError: the batch ended before the prompts did, so nothing was measured beside it.
    """
    labels = (LABEL, *read_served_model(model).labels)
    with ServiceHarness(
        model, max_batch=str(max_batch), predict_deadline_s="1", worker_lost_s="60", abandoned_s="6000"
    ) as service:
        service.start_interactive_worker()
        service.start_workers(1, is_nice=True)
        service.set_up_project(labels)
        addresses = [_serve_scene(service, number) for number in range(images)]
        _prompt_image(service, labels, addresses[0], 900_000, random.Random(0))  # connections and code paths are warm
        figures: Json = {"image": f"{WIDTH_PX} x {HEIGHT_PX}", "images": images, "later prompts an image": LATER}
        figures["without a batch"] = _prompts(service, labels, addresses, 100_000)
        # One request, which is deferred after a second; its tasks stay in the queue.
        service.predict({number: addresses[number % images] for number in range(batch_tasks)}, labels)
        before = _waiting(service)
        figures[f"beside {batch_tasks} tasks"] = _prompts(service, labels, addresses, 200_000)
        if not (left := _waiting(service)):
            raise StartError("The batch ended before the prompts.", "Ask for more --tasks.")
        figures["tasks waiting"] = {"before": before, "after": left}
        names = ("interactive worker", "worker")
        pids = [worker.pid for worker in service.workers]
        figures["memory in MiB"] = {name: memory_mib(pid) for name, pid in zip(names, pids, strict=True)}
    return figures


def _serve_scene(service: ServiceHarness, number: int) -> str:
    """The address of a generated scene as a JPEG."""
    file = io.BytesIO()
    scene = Image.fromarray(generate_scene(scene_seed("demo", number)).image)
    scene.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BILINEAR).save(file, "JPEG", quality=90)
    service.images.files[f"{number}.jpg"] = file.getvalue()
    return f"{service.images.url}/data/files/{number}.jpg"


def _waiting(service: ServiceHarness) -> int:
    with service.connection() as connection:
        return int(connection.llen(PREDICT_LANE))


def _prompts(service: ServiceHarness, labels: tuple[str, ...], addresses: list[str], first_id: int) -> Json:
    rng = random.Random(first_id)
    first, later = [], []
    for number, address in enumerate(addresses):
        seconds = _prompt_image(service, labels, address, first_id + number, rng)
        first.append(seconds[0])
        later += seconds[1:]
    return {**in_ms(first, "first"), **in_ms(later, "later")}


def _prompt_image(
    service: ServiceHarness, labels: tuple[str, ...], address: str, task: int, rng: random.Random
) -> list[float]:
    """Seconds of each prompt: a box, then a click more each time."""
    bounds = {"x": (0, 60), "y": (0, 60), "width": (15, 40), "height": (15, 40)}
    box = {side: rng.uniform(*limits) for side, limits in bounds.items()}
    regions: list[Json] = [{"id": "box", "type": "rectanglelabels", "value": {**box, "rectanglelabels": [LABEL]}}]
    seconds = []
    for number in range(1 + LATER):
        begun = time.perf_counter()
        service.predict({task: address}, labels, {"result": regions}, timeout_s=120)
        seconds.append(time.perf_counter() - begun)
        place: Json = {"x": box["x"] + box["width"] * rng.random(), "y": box["y"] + box["height"] * rng.random()}
        point: Json = {"id": f"point-{number}", "type": "keypointlabels", "is_positive": number % 2 == 0}
        regions.append({**point, "value": {**place, "width": 0.2, "keypointlabels": [LABEL]}})
        time.sleep(rng.uniform(0.1, 0.4))  # a person needs a moment, and batches come and go meanwhile
    return seconds
