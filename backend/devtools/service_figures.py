"""Optional measurements of `transfiner load`: memory of each process (`--memory`), latency of prompts (`--prompts`)."""

from __future__ import annotations

import io
import itertools
import json
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from backend.devtools.harness import PROJECT, ServiceHarness
from backend.processes.waiting import wait_until
from backend.queue.keys import PREDICT_LANE, RUNNING
from backend.settings import SHIPPED_PROMPT_MODEL
from backend.versions.resolve import read_served_model
from training.synthetic.scenes import generate_scene, scene_seed

Json = dict[str, Any]
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


def memory_mib(pid: int, field: str = "VmRSS") -> float:
    """Resident memory of a process; with VmHWM its peak."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return round(int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024, 1)


def in_ms(seconds: Sequence[float], name: str) -> Json:
    """Median and 95th percentile of some durations, in milliseconds."""
    return {
        f"{name} p50 in ms": round(statistics.median(seconds) * 1000, 1),
        f"{name} p95 in ms": round(float(np.percentile(seconds, 95)) * 1000, 1),
    }


def memory_table(model: Path | None, tasks: int) -> list[Json]:
    """Peak resident memory in MiB of API, worker and queue server for each case, and how long pages take.

    Args:
        model: of the worker that gets large images; None: a stub. The other workers always have a stub and tiny
            images, since only the memory of tasks and labels is measured.
        tasks: of each request.
    """
    return [*(_of_labels(count, tasks) for count in LABELS), _of_large_images(model), large_bodies_row()]


def _of_labels(count: int, tasks: int) -> Json:
    """Measure memory with `count` labels: one request is computed and pushed, then others wait without any worker."""
    labels = ("thing", *(f"label number {number}" for number in range(count - 1)))
    prompts = str(SHIPPED_PROMPT_MODEL)
    with ServiceHarness(predict_deadline_s="2", max_batch="64", worker_lost_s="60", prompt_model=prompts) as service:

        def ask(first_task: int) -> None:
            images = [f"{service.images.url}/data/upload/32/{number}.png" for number in range(tasks)]
            service.predict(dict(enumerate(images, first_task)), labels)

        service.set_up_project(labels)
        (worker,) = service.start_workers(1)
        ask(1)
        wait_until(lambda: len(service.label_studio.stored()) == tasks, "All predictions", GIVE_UP_S)
        worker_mib = memory_mib(worker.pid, "VmHWM")
        service.end_workers()
        for number in range(1, 1 + WAITING_REQUESTS):
            ask(1 + number * tasks)
        waiting = f"{count} labels, {tasks} tasks computed and {WAITING_REQUESTS * tasks} waiting"
        return {**_row(waiting, service, worker_mib), **{f"{path} in ms": _page_ms(service, path) for path in PAGES}}


def _page_ms(service: ServiceHarness, path: str) -> float:
    """Median time to load a page, in ms."""
    answers = [requests.get(service.address + path, timeout=60) for _ in range(PAGE_REQUESTS)]
    for answer in answers:
        answer.raise_for_status()
    return round(1000 * statistics.median(answer.elapsed.total_seconds() for answer in answers), 1)


def large_bodies_row() -> Json:
    """Measure memory while clients send the largest bodies at once: an image in a task, and lists of empty lists."""
    image = json.dumps({"tasks": [{"id": 1, "data": {"image": "x" * BODY_BYTES}}], "project": PROJECT})
    lists = json.dumps({"tasks": [{"id": 1, "data": {"image": "x", "a": [[]] * (BODY_BYTES // 4)}}]})
    bodies = [image.encode(), lists.encode()] * (LARGE_BODIES // 2)
    with ServiceHarness(predict_deadline_s="2") as service:
        service.set_up_project()

        def send(body: bytes) -> int:
            headers = {"Content-Type": "application/json"}
            return requests.post(f"{service.address}/predict", data=body, headers=headers, timeout=600).status_code

        with ThreadPoolExecutor(LARGE_BODIES) as pool:
            answers = Counter(pool.map(send, bodies))
        statuses = ", ".join(f"{count} answered {status}" for status, count in sorted(answers.items()))
        return _row(f"{LARGE_BODIES} bodies of {BODY_BYTES / 2**20:.0f} MiB at once: {statuses}", service, 0.0)


def _of_large_images(model: Path | None) -> Json:
    """Measure memory with JPEGs of 40 MP; soft noise makes the decoder work."""
    noise = np.random.default_rng(0).integers(0, 255, (LARGE_PX[1] // 20, LARGE_PX[0] // 20, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(LARGE_PX).save(file, "JPEG", quality=85)
    with ServiceHarness(model, predict_deadline_s="2", worker_lost_s="60", batch_timeout_s="900") as service:
        labels = read_served_model(service.model).labels
        service.set_up_project(labels)
        (worker,) = service.start_workers(1)
        service.images.files["large.jpg"] = file.getvalue()
        images = [f"{service.images.url}/data/files/large.jpg?{number}" for number in range(LARGE_IMAGES)]
        service.predict(dict(enumerate(images, 1)), labels)
        wait_until(lambda: len(service.label_studio.stored()) == LARGE_IMAGES, "All predictions", GIVE_UP_S)
        case = f"{LARGE_IMAGES} images of {LARGE_PX[0] * LARGE_PX[1] / 1e6:.0f} MP, {service.model.name}"
        return _row(case, service, memory_mib(worker.pid, "VmHWM"))


def _row(case: str, service: ServiceHarness, worker_mib: float) -> Json:
    assert service.api
    assert service.queue
    peaks = {"api": memory_mib(service.api.pid, "VmHWM"), "worker": worker_mib}
    peaks["queue server"] = memory_mib(service.queue.pid, "VmHWM")
    return {"case": case, **peaks, **{f"{path} in ms": 0.0 for path in PAGES}}


PROMPTED_PX = (640, 480)
LABEL = "thing"
#: Later prompts on each image.
LATER = 4
# The queue is looked at this often, in s, while a batch is kept going.
REFILL_S = 0.05


def measure_prompts(model: Path, images: int, batch_tasks: int, max_batch: int) -> Json:
    """Measure milliseconds of first and later prompts, idle and beside a batch; memory of each process.

    A prompt is one request to /predict, from sending it to its answer: a box first, then clicks on the same image.

    Args:
        batch_tasks: waiting tasks, at least two batches; refilled while prompts are measured.
    """
    labels = (LABEL, *read_served_model(model).labels)
    settings: Json = {
        "max_batch": str(max_batch),
        "predict_deadline_s": "0.1",
    }  # a request that refills the queue waits not
    with ServiceHarness(model, worker_lost_s="60", abandoned_s="6000", **settings) as service:
        service.start_interactive_worker()
        service.start_workers(1, is_nice=True)
        service.set_up_project(labels)
        addresses = [_serve_scene(service, number) for number in range(images)]
        _prompt_image(service, labels, addresses[0], 900_000, random.Random(0))  # connections and code paths are warm
        size = " x ".join(map(str, PROMPTED_PX))
        figures: Json = {"image": size, "images": images, "later prompts an image": LATER}
        figures["without a batch"] = _prompts(service, labels, addresses, 100_000)
        level = max(batch_tasks, 2 * max_batch)
        with _batch_kept_going(service, labels, addresses, level) as counts:
            figures[f"beside {level} tasks"] = _prompts(service, labels, addresses, 200_000)
        figures["tasks beside"] = {"least": min(counts), "most": max(counts)}
        names = ("interactive worker", "worker")
        pids = [worker.pid for worker in service.workers]
        figures["memory in MiB"] = {name: memory_mib(pid) for name, pid in zip(names, pids, strict=True)}
    return figures


def _serve_scene(service: ServiceHarness, number: int) -> str:
    """Serve a generated scene as a JPEG; its address."""
    file = io.BytesIO()
    scene = Image.fromarray(generate_scene(scene_seed("demo", number)).image)
    scene.resize(PROMPTED_PX, Image.Resampling.BILINEAR).save(file, "JPEG", quality=90)
    service.images.files[f"{number}.jpg"] = file.getvalue()
    return f"{service.images.url}/data/files/{number}.jpg"


@contextmanager
def _batch_kept_going(
    service: ServiceHarness, labels: tuple[str, ...], addresses: list[str], level: int
) -> Iterator[list[int]]:
    """Keep `level` tasks waiting inside the `with` block; yields samples of the number that waited or ran.

    Raises:
        requests.RequestException: tasks could not be requested.
    """
    stop, numbers, counts = threading.Event(), itertools.count(300_000), list[int]()

    def refill() -> None:
        while not stop.is_set():
            missing_count = level - _waiting(service)
            if missing_count > level // 2:
                service.predict(
                    {next(numbers): addresses[place % len(addresses)] for place in range(missing_count)}, labels
                )
            counts.append(_waiting(service) + _running(service))
            stop.wait(REFILL_S)

    with ThreadPoolExecutor(1) as pool:
        refill_job = pool.submit(refill)
        try:
            wait_until(lambda: counts or refill_job.done(), "A batch", GIVE_UP_S)
            yield counts
        finally:
            stop.set()
        refill_job.result()


def _waiting(service: ServiceHarness) -> int:
    with service.connection() as connection:
        return int(connection.llen(PREDICT_LANE))


def _running(service: ServiceHarness) -> int:
    with service.connection() as connection:
        return sum(int(connection.scard(key)) for key in connection.scan_iter(f"{RUNNING}*"))


def _prompts(service: ServiceHarness, labels: tuple[str, ...], addresses: list[str], first_id: int) -> Json:
    rng = random.Random(first_id)
    seconds = [
        _prompt_image(service, labels, address, first_id + number, rng) for number, address in enumerate(addresses)
    ]
    later = [duration for of_image in seconds for duration in of_image[1:]]
    return {**in_ms([of_image[0] for of_image in seconds], "first"), **in_ms(later, "later")}


def _prompt_image(
    service: ServiceHarness, labels: tuple[str, ...], address: str, task: int, rng: random.Random
) -> list[float]:
    """Measure the seconds of each prompt: a box, then one more click each time."""
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
        time.sleep(rng.uniform(0.1, 0.4))  # as a person pauses, so that batches begin and end meanwhile
    return seconds
