"""What the tests of the service share: bodies, waiting, worker processes with a fake model."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from redis import Redis

from backend.queue.job_queue import JobQueue
from backend.queue.job_store import FinishedJob, JobOutcome
from backend.queue.recovery import living_workers

# A worker on a busy machine must not look dead.
LOST_S = 4.0
ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT / "tests" / "recordings"
CONFIG = """<View><Image name="image" value="$image"/><PolygonLabels name="poly" toName="image">
<Label value="gear"/><Label value="leaf"/></PolygonLabels></View>"""


def data_uri(width: int = 16, height: int = 12) -> str:
    """A tiny image, so that no test needs a network; the fake model reads wishes from its width."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(file, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def wait_until(condition: Callable[[], object], *, give_up_s: float = 120.0) -> None:
    """Poll until true; fails the test when it never gets true."""
    deadline = time.monotonic() + give_up_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def states(queue: JobQueue, job_ids: Sequence[str]) -> list[str]:
    """State of each task, "" for unknown ones."""
    return [state for (state,) in queue.records.fields(job_ids, "state").values()]


def finish(queue: JobQueue, job_id: str, outcome: JobOutcome) -> None:
    """End a task as a worker does."""
    queue.records.finish_all({job_id: FinishedJob(outcome, {})})


class FakeWorkers:
    """Worker processes with the fake model; kept for the next test if they suit it too."""

    def __init__(self, redis_url: str, model: Path) -> None:
        self.redis_url = redis_url
        self.model = model
        self.wishes = ""
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, count: int = 1, **options: Any) -> list[subprocess.Popen[bytes]]:
        """`count` living workers with these settings; `fake`: see fake_worker.py."""
        wishes = json.dumps([count, options], sort_keys=True)
        if wishes != self.wishes or any(process.poll() is not None for process in self.processes):
            self.end()
            self.wishes = wishes
            self.add(count, **options)
        self._await_life(self.processes)
        return self.processes

    def add(self, count: int = 1, **options: Any) -> list[subprocess.Popen[bytes]]:
        """More workers, without waiting for them."""
        fake = options.pop("fake", {})
        environment = {
            **os.environ,
            "TRANSFINER_REDIS_URL": self.redis_url,
            "TRANSFINER_MODEL": str(self.model),
            "TRANSFINER_PROMPT_MODEL": str(self.model / "none"),
            "TRANSFINER_WORKER_LOST_S": str(LOST_S),
            "TRANSFINER_PRIVATE_IMAGE_HOSTS": "127.0.0.1",
            **{f"TRANSFINER_{name.upper()}": str(value) for name, value in options.items()},
            "FAKE": json.dumps(fake),
            "PARENT": str(os.getpid()),
        }
        command = [sys.executable, "-m", "tests.support.fake_worker"]
        fresh = [subprocess.Popen(command, env=environment, cwd=ROOT) for _ in range(count)]
        self.processes += fresh
        return fresh

    def _await_life(self, processes: list[subprocess.Popen[bytes]]) -> None:
        pids = {process.pid for process in processes}
        with Redis.from_url(self.redis_url) as connection:
            wait_until(lambda: pids <= {facts["pid"] for facts in living_workers(connection).values()})

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self.processes = []
        self.wishes = ""


def tasks(count: int, *, start: int = 1, image: str = "") -> list[dict[str, Any]]:
    """Tasks with an image in each."""
    return [{"id": number, "data": {"image": image or data_uri()}} for number in range(start, start + count)]


def predict_body(items: list[dict[str, Any]], *, project: str = "", context: Any = None) -> dict[str, Any]:
    """As Label Studio sends it."""
    params = {"login": None, "password": None, "context": context}
    return {"tasks": items, "project": project, "label_config": CONFIG, "params": params}


def setup_body(hostname: str, token: str, *, project: str = "7.1795339022", config: str = CONFIG) -> dict[str, Any]:
    """As Label Studio sends it."""
    return {"project": project, "schema": config, "hostname": hostname, "access_token": token, "extra_params": {}}
