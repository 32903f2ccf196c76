"""The memory that each process of the service needs: many tasks, many labels, large images."""

from __future__ import annotations

import io
import json
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import requests
from PIL import Image

from backend.devtools.load.measuring import Json, memory_mib
from backend.devtools.soak.harness import PROJECT, ServiceHarness
from backend.processes.waiting import wait_until
from backend.settings import SHIPPED_PROMPT_MODEL
from backend.versions.resolve import read_served_model

# Labels of COCO and of LVIS.
LABELS = (80, 1203)
# Requests that wait at the same time, after the first one was computed and pushed.
WAITING_REQUESTS = 2
LARGE_PX = (7300, 5480)
LARGE_IMAGES = 12
GIVE_UP_S = 3600.0
# Bodies at once, a little below the largest that is taken, and requests for a page.
LARGE_BODIES, BODY_BYTES = 8, 31 * 2**20
PAGE_REQUESTS = 20
PAGES = ("/status", "/jobs")


def memory_table(model: Path | None, tasks: int) -> list[Json]:
    """Peak resident memory in MiB of API, worker and queue server for each case, and how long pages take.

    Args:
        model: of the worker that gets large images; None: a stub. The other workers have a stub always: their images
            are tiny, since what is measured is what tasks and labels take.
        tasks: of each request.
    """
    return [*(_of_labels(count, tasks) for count in LABELS), _of_large_images(model), large_bodies_row()]


def _of_labels(count: int, tasks: int) -> Json:
    """One request is computed and pushed, then others wait without any worker."""
    labels = ("thing", *(f"label number {number}" for number in range(count - 1)))
    prompts = str(SHIPPED_PROMPT_MODEL)
    with ServiceHarness(predict_deadline_s="2", max_batch="64", worker_lost_s="60", prompt_model=prompts) as stage:

        def ask(first: int) -> None:
            images = [f"{stage.images.url}/data/upload/32/{number}.png" for number in range(tasks)]
            stage.predict(dict(enumerate(images, first)), labels)

        stage.set_up_project(labels)
        (worker,) = stage.start_workers(1)
        ask(1)
        wait_until(lambda: len(stage.label_studio.stored()) == tasks, "All predictions", GIVE_UP_S)
        worker_mib = memory_mib(worker.pid, "VmHWM")
        stage.end_workers()
        for number in range(1, 1 + WAITING_REQUESTS):
            ask(1 + number * tasks)
        waiting = f"{count} labels, {tasks} tasks computed and {WAITING_REQUESTS * tasks} waiting"
        return {**_row(waiting, stage, worker_mib), **{f"{path} in ms": _page_ms(stage, path) for path in PAGES}}


def _page_ms(stage: ServiceHarness, path: str) -> float:
    """Median time until a page is there, in ms."""
    seconds = []
    for _ in range(PAGE_REQUESTS):
        begun = time.perf_counter()
        requests.get(stage.address + path, timeout=60).raise_for_status()
        seconds.append(time.perf_counter() - begun)
    return round(1000 * statistics.median(seconds), 1)


def large_bodies_row() -> Json:
    """Clients that send as much as is taken at the same moment: an image inside a task, and lists of empty lists."""
    image = json.dumps({"tasks": [{"id": 1, "data": {"image": "x" * BODY_BYTES}}], "project": PROJECT})
    lists = json.dumps({"tasks": [{"id": 1, "data": {"image": "x", "a": [[]] * (BODY_BYTES // 4)}}]})
    bodies = [image.encode(), lists.encode()] * (LARGE_BODIES // 2)
    with ServiceHarness(predict_deadline_s="2") as stage:
        stage.set_up_project()

        def send(body: bytes) -> int:
            headers = {"Content-Type": "application/json"}
            return requests.post(f"{stage.address}/predict", data=body, headers=headers, timeout=600).status_code

        with ThreadPoolExecutor(LARGE_BODIES) as pool:
            answers = Counter(pool.map(send, bodies))
        statuses = ", ".join(f"{count} answered {status}" for status, count in sorted(answers.items()))
        return _row(f"{LARGE_BODIES} bodies of {BODY_BYTES / 2**20:.0f} MiB at once: {statuses}", stage, 0.0)


def _of_large_images(model: Path | None) -> Json:
    with ServiceHarness(model, predict_deadline_s="2", worker_lost_s="60", batch_timeout_s="900") as stage:
        labels = read_served_model(stage.model).labels
        stage.set_up_project(labels)
        (worker,) = stage.start_workers(1)
        stage.images.files["large.jpg"] = _large_picture()
        images = [f"{stage.images.url}/data/files/large.jpg?{number}" for number in range(LARGE_IMAGES)]
        stage.predict(dict(enumerate(images, 1)), labels)
        wait_until(lambda: len(stage.label_studio.stored()) == LARGE_IMAGES, "All predictions", GIVE_UP_S)
        megapixels = LARGE_PX[0] * LARGE_PX[1] / 1e6
        case = f"{LARGE_IMAGES} images of {megapixels:.0f} MP, {stage.model.name}"
        return _row(case, stage, memory_mib(worker.pid, "VmHWM"))


def _row(case: str, stage: ServiceHarness, worker_mib: float) -> Json:
    assert stage.api
    assert stage.queue
    peaks = {"api": memory_mib(stage.api.pid, "VmHWM"), "worker": worker_mib}
    peaks["queue server"] = memory_mib(stage.queue.pid, "VmHWM")
    return {"case": case, **peaks, **{f"{path} in ms": 0.0 for path in PAGES}}


def _large_picture() -> bytes:
    """A JPEG of 40 MP with soft noise, so that it has something to decode."""
    noise = np.random.default_rng(0).integers(0, 255, (LARGE_PX[1] // 20, LARGE_PX[0] // 20, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(LARGE_PX).save(file, "JPEG", quality=85)
    return file.getvalue()
