"""A real worker with a stub for a model (`python -m backend.devtools.stub_worker`), to test faults and queue costs.

The variable SOAK holds JSON: `seconds` that a batch takes, `crash_width`: an image of this width kills the process.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import numpy as np

from backend.logs import set_up_logs
from backend.settings import Settings
from backend.versions.resolve import read_served_model
from backend.worker.main import run_worker
from backend.worker.model_cache import Predictor
from model.instance import Instance


class StubPredictor:
    """Finds a rectangle in the middle of every image."""

    labels: tuple[str, ...] = ("thing",)
    device = "cpu"
    weights_bytes = 0
    precision = "fp32"

    def __init__(self, version: str, options: dict[str, Any]) -> None:
        self.version, self.options = version, options

    def smaller(self, divisor: int) -> Predictor:  # noqa: ARG002
        return self

    def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]:
        if any(image.shape[1] == self.options.get("crash_width") for image in images):
            os._exit(13)
        time.sleep(float(self.options.get("seconds", 0.0)))
        return [[_rectangle(image)] for image in images]


def _rectangle(image: np.ndarray) -> Instance:
    height, width = image.shape[:2]
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = True
    return Instance((width / 4, height / 4, width * 3 / 4, height * 3 / 4), "thing", 0.9, mask)


def main() -> None:
    """Run the worker until SIGTERM."""
    options = json.loads(os.environ.get("SOAK", "{}"))
    settings = Settings()
    set_up_logs(settings)
    run_worker(settings, lambda config: StubPredictor(read_served_model(config.model).version, options))


if __name__ == "__main__":
    main()
