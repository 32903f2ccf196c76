"""The service with the product's own queue, API and worker, but a model that always finds two known objects.

One has a hole and two parts, a thin stalk and a jagged rim, the other is a ring.
`python -m tests.e2e.known_object_service` runs it until SIGINT.

PARENT: process id that the worker must not outlive; PORT, MODEL (folder with metadata.json) and FOLDER are arguments.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from backend.logs import set_up_logs
from backend.processes.parent_death import die_with_parent
from backend.processes.service_tree import service_children
from backend.processes.supervisor import Supervisor
from backend.settings import Settings, load_settings
from backend.versions.resolve import read_served_model
from backend.worker.main import run_worker
from model.instance import Instance, box_of

LABEL = "gear"
WIDTH, HEIGHT = 640, 480


def shaped_mask() -> np.ndarray:
    """Bool (HEIGHT, WIDTH): a wheel with cogs, a hole and a stalk, and a disc beside it that belongs to it."""
    y, x = (np.mgrid[:HEIGHT, :WIDTH] + 0.5).astype(np.float64)
    angle, radius = np.arctan2(y - 240, x - 230), np.hypot(y - 240, x - 230)
    wheel = (radius < 170 + 12 * np.sign(np.sin(9 * angle))) & (radius > 55 + 8 * np.cos(3 * angle))
    stalk = (np.abs(y - 250 - (x - 400) * 0.2) < 3) & (x > 390) & (x < 560)
    disc = np.hypot(y - 110, x - 540) < 65
    return wheel | stalk | disc


def ring_mask() -> np.ndarray:
    """Bool (HEIGHT, WIDTH): a ring that touches nothing of the other object."""
    y, x = (np.mgrid[:HEIGHT, :WIDTH] + 0.5).astype(np.float64)
    return np.abs(np.hypot(y - 390, x - 545) - 50) < 16


class ShapedPredictor:
    """Finds `shaped_mask` and `ring_mask` on every picture."""

    labels = (LABEL,)
    device = "cpu"
    weights_bytes = 0
    precision = "fp32"

    def __init__(self, version: str) -> None:
        self.version = version

    def smaller(self, divisor: int) -> ShapedPredictor:
        return self

    def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]:
        instances = []
        for mask, score in ((shaped_mask(), 0.9), (ring_mask(), 0.8)):
            left, top, right, bottom = map(float, box_of(mask))
            instances.append(Instance((left, top, right, bottom), LABEL, score, mask))
        return [instances for _ in images]


def serve(port: int, model: Path, folder: Path) -> int:
    """The tree of `transfiner serve`, with this file as the worker's program."""
    settings = load_settings(
        port=port,
        model=model,
        registry=str(folder / "registry"),
        registry_cache=folder / "cache",
        learning_folder=folder / "learning",
    )
    set_up_logs(settings)
    children, _ = service_children(settings.model_copy(update={"train_worker": False}))
    ours = [
        replace(child, command=[sys.executable, __file__]) if child.name.startswith("worker") else child
        for child in children
    ]
    return Supervisor(ours, when_ready=lambda: print("ready", flush=True)).run()


def work() -> None:
    """The worker: `transfiner worker` but for the model."""
    settings = Settings()
    set_up_logs(settings)
    run_worker(settings, lambda chosen: ShapedPredictor(read_served_model(chosen.model).version))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        work()
    else:
        die_with_parent(int(os.environ["PARENT"]), signal.SIGINT)
        sys.exit(serve(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])))
