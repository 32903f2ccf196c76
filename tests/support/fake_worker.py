"""A real worker process with a model that costs nothing. What it shall do comes as JSON in the variable FAKE:

seconds: how long a batch takes; crash: task images of this width kill the process; fail: ... of this width raise;
label: the class found; weights_mib: what each model is said to take.
Every batch is counted in Redis under `fake:images` (images seen) and `fake:batches` (size of each batch).
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import numpy as np
from redis import Redis

from backend.logs import set_up_logs
from backend.processes.parent_death import die_with_parent
from backend.settings import Settings
from backend.versions.resolve import read_served_model
from backend.worker.main import run_worker
from model.instance import Instance


class FakePredictor:
    labels = ("gear", "leaf")
    device = "cpu"

    def __init__(self, connection: Redis, wishes: dict[str, Any], version: str) -> None:
        self.version = version
        self.connection = connection
        self.wishes = wishes
        self.precision = "fp32"
        self.weights_bytes = int(wishes.get("weights_mib", 1) * 2**20)

    def smaller(self, divisor: int) -> FakePredictor:
        return self

    def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]:
        self.connection.rpush("fake:batches", len(images))
        self.connection.rpush("fake:versions", self.version)
        self.connection.incrby("fake:images", len(images))
        widths = [image.shape[1] for image in images]
        if self.wishes.get("crash") in widths:
            os._exit(13)
        time.sleep(self.wishes.get("seconds", 0.0))
        if self.wishes.get("fail") in widths:
            raise RuntimeError("the fake model does not like this width")
        return [[self._square(image)] for image in images]

    def _square(self, image: np.ndarray) -> Instance:
        height, width = image.shape[:2]
        mask = np.zeros((height, width), bool)
        mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
        return Instance(
            (width / 4, height / 4, width * 3 / 4, height * 3 / 4), self.wishes.get("label", "gear"), 0.9, mask, 0.1
        )


def main() -> None:
    # Not even a killed test run leaves a worker behind.
    die_with_parent(int(os.environ["PARENT"]), signal.SIGKILL)
    settings = Settings()
    set_up_logs(settings)
    connection = Redis.from_url(settings.redis_url)
    wishes = json.loads(os.environ["FAKE"])
    run_worker(settings, lambda chosen: FakePredictor(connection, wishes, read_served_model(chosen.model).version))


if __name__ == "__main__":
    main()
