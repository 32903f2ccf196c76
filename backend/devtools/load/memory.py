"""The memory that each process of the service needs: many tasks, many labels, large images."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from backend.devtools.load.measuring import replaceable_copy
from backend.devtools.programs import child_of
from backend.devtools.soak.harness import PROJECT, ServiceHarness, label_config
from backend.processes.waiting import wait_until
from backend.versions.served_model import read_served_model

# Labels of COCO and of LVIS.
LABELS = (80, 1203)
# Requests that wait at the same time, after the first one was computed and pushed.
WAITING_REQUESTS = 2
LARGE_PX = (7300, 5480)
LARGE_IMAGES = 12
GIVE_UP_S = 3600.0


def memory_table(model: Path | None, tasks: int) -> list[dict[str, Any]]:
    """Peak resident memory in MiB of API, worker and queue server for each case.

    Args:
        model: of the worker that gets large images; None: a stub. The other workers have a stub always: their images
            are tiny, since what is measured is what tasks and labels take.
        tasks: of each request.
    """
    rows = [_of_labels(count, tasks) for count in LABELS]
    return [*rows, _of_large_images(model)]


def _of_labels(count: int, tasks: int) -> dict[str, Any]:
    """One request is computed and pushed, then others wait without any worker."""
    labels = ("thing", *(f"label number {number}" for number in range(count - 1)))
    with ServiceHarness(predict_deadline_s="2", max_batch="64", worker_lost_s="60") as stage:
        stage.set_up_project(labels)
        (worker,) = stage.start_workers(1)
        _ask(stage, labels, 1, [f"data/upload/32/{number}.png" for number in range(tasks)])
        wait_until(lambda: len(stage.label_studio.stored()) == tasks, "All predictions", GIVE_UP_S)
        worker_mib = peak_mib(worker.pid)
        stage.end_workers()
        for number in range(1, 1 + WAITING_REQUESTS):
            _ask(stage, labels, 1 + number * tasks, [f"data/upload/32/{number}.png" for number in range(tasks)])
        waiting = f"{count} labels, {tasks} tasks computed and {WAITING_REQUESTS * tasks} waiting"
        return _row(waiting, stage, worker_mib)


def _of_large_images(model: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        copy = None if model is None else replaceable_copy(model, Path(folder))
        with ServiceHarness(copy, predict_deadline_s="2", worker_lost_s="60", batch_timeout_s="900") as stage:
            labels = read_served_model(stage.model).labels
            stage.set_up_project(labels)
            (worker,) = stage.start_workers(1)
            stage.images.files["large.jpg"] = _large_picture()
            _ask(stage, labels, 1, [f"data/files/large.jpg?{number}" for number in range(LARGE_IMAGES)])
            wait_until(lambda: len(stage.label_studio.stored()) == LARGE_IMAGES, "All predictions", GIVE_UP_S)
            megapixels = LARGE_PX[0] * LARGE_PX[1] / 1e6
            kind = "stub" if model is None else model.name
            return _row(f"{LARGE_IMAGES} images of {megapixels:.0f} MP, {kind}", stage, peak_mib(worker.pid))


def _ask(stage: ServiceHarness, labels: tuple[str, ...], first: int, paths: list[str]) -> None:
    items = [
        {"id": first + number, "data": {"image": f"{stage.images.url}/{path}"}} for number, path in enumerate(paths)
    ]
    body = {"tasks": items, "project": PROJECT, "label_config": label_config(labels), "params": {"context": None}}
    requests.post(f"{stage.address}/predict", json=body, timeout=600).raise_for_status()


def _row(case: str, stage: ServiceHarness, worker_mib: float) -> dict[str, Any]:
    assert stage.api
    assert stage.queue
    return {
        "case": case,
        "api": peak_mib(child_of(stage.api.pid)),
        "worker": worker_mib,
        "queue server": peak_mib(stage.queue.pid),
    }


def peak_mib(pid: int) -> float:
    """The most resident memory that a process had, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024, 1)


def _large_picture() -> bytes:
    """A JPEG of 40 MP with soft noise, so that it has something to decode."""
    noise = np.random.default_rng(0).integers(0, 255, (LARGE_PX[1] // 20, LARGE_PX[0] // 20, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(LARGE_PX).save(file, "JPEG", quality=85)
    return file.getvalue()
