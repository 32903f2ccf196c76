"""Batches overlap: images ahead and outlines behind, while the network runs. A real queue, a model that tells."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from backend.errors import TaskError
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.queue.job_store import FinishedJob
from backend.queue.recovery import Heartbeat
from backend.versions.resolve import ServedModel
from backend.worker.images import BatchFetcher
from backend.worker.main import Batcher, BatchPipeline
from backend.worker.task_runner import TaskRunner
from model.instance import Instance
from tests.support.service import CONFIG

pytestmark = pytest.mark.service

PATIENCE_S = 60
SERVED = ServedModel(Path("models/v1"), "v1", "v1", ("gear",), "")


class Scene:
    """Batches of one task with a model, images and records whose every step can be waited for."""

    labels = ("gear",)
    version = "v1"
    device = "cpu"
    weights_bytes = 0
    precision = "fp32"

    def __init__(self, queue: JobQueue, *, timeout_s: int = PATIENCE_S) -> None:
        self.fetched = {number: threading.Event() for number in range(1, 9)}
        self.recorded = {number: threading.Event() for number in range(1, 9)}
        self.order: list[int] = []
        self.ended: dict[int, str] = {}
        self.is_stopping = False
        self.during: dict[int, Callable[[], object]] = {}
        vitals = Heartbeat(queue.connection, "this-worker", lost_after_s=PATIENCE_S)
        vitals.beat({})
        taking = Batcher(queue, vitals, queue.settings.model_copy(update={"max_batch": 1}))
        runner = TaskRunner(self, self.fetch, self.done)
        self.taking = taking
        self.stretch = BatchPipeline(taking, runner, may_go_on=lambda: not self.is_stopping, timeout_s=timeout_s)

    def find(self, project_key: str, version: str) -> ServedModel:
        return SERVED

    def predictor(self, served: ServedModel) -> Scene:
        return self

    def spare(self, served: ServedModel) -> None:
        return None

    def smaller(self, divisor: int) -> Scene:
        return self

    def fetch(self, job: PredictionJob, key: str) -> np.ndarray:
        self.fetched[job.task["id"]].set()
        return np.full((8, job.task["id"], 3), 7, np.uint8)

    def done(self, ended: Mapping[str, FinishedJob], stages_s: Mapping[str, float]) -> None:
        for job_id, job in ended.items():
            number = int(job_id.split("-")[1].removeprefix("t"))
            self.ended[number] = job.outcome.error
            if job.outcome.error:
                # The next batch may take its time, however busy the machine is.
                self.stretch.timeout_s = PATIENCE_S
            self.recorded[number].set()

    def __call__(self, images: list[np.ndarray]) -> list[list[Instance]]:
        (image,) = images
        number = image.shape[1]
        self.order.append(number)
        self.during.get(number, lambda: None)()
        return [[]]

    def run(self) -> None:
        self.stretch.run(self.taking.next())


def jobs(*numbers: int) -> list[PredictionJob]:
    return [PredictionJob("7.1", {"id": n, "data": {"image": "x"}}, "x", CONFIG, "v1") for n in numbers]


@pytest.fixture
def queue(settings, redis) -> JobQueue:
    return JobQueue(redis, settings)


def awaited(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S), "it never happened while the network ran"


def test_the_next_images_and_the_last_outlines_are_made_while_the_network_runs(queue):
    scene = Scene(queue)
    queue.submit(jobs(1, 2, 3))
    scene.during = {
        1: lambda: awaited(scene.fetched[2]),
        2: lambda: (awaited(scene.recorded[1]), awaited(scene.fetched[3])),
        3: lambda: awaited(scene.recorded[2]),
    }
    scene.run()
    assert scene.order == [1, 2, 3]
    assert scene.ended == {1: "", 2: "", 3: ""}


def test_an_interactive_task_overtakes_the_batch_that_is_prepared(queue):
    scene = Scene(queue)
    queue.submit(jobs(1, 2, 3))
    scene.during = {1: lambda: (awaited(scene.fetched[2]), queue.submit(jobs(8), interactive=True))}
    scene.run()
    assert scene.order == [1, 8, 2, 3]


def test_asked_to_stop_it_finishes_what_it_has_taken_and_leaves_the_rest(queue):
    scene = Scene(queue)
    queue.submit(jobs(1, 2, 3, 4))

    def stop() -> None:
        scene.is_stopping = True

    scene.during = {1: stop}
    scene.run()
    assert sorted(scene.ended) == [1, 2]
    assert queue.depth()["predict"] == 2


def test_a_batch_over_its_time_fails_and_the_next_one_runs(queue):
    scene = Scene(queue, timeout_s=1)
    before = signal.getsignal(signal.SIGALRM)
    queue.submit(jobs(1, 2))
    scene.during = {1: lambda: time.sleep(PATIENCE_S)}
    scene.run()
    assert "longer than 1 s" in scene.ended[1]
    assert scene.ended[2] == ""
    assert signal.getsignal(signal.SIGALRM) in (before, signal.SIG_DFL)


def test_outlines_over_their_time_fail_and_the_next_batch_is_outlined(queue, monkeypatch):
    scene = Scene(queue, timeout_s=1)
    stuck = threading.Event()

    def written(job, *_):
        if job.task["id"] == 1:
            stuck.wait(PATIENCE_S)
        return {"result": []}

    monkeypatch.setattr("backend.worker.task_runner.prediction_of", written)
    queue.submit(jobs(1, 2))
    scene.run()
    assert "longer than 1 s" in scene.ended[1]
    assert scene.ended[2] == ""
    stuck.set()


def test_a_lost_queue_server_ends_the_stretch_after_what_is_at_hand(queue, monkeypatch):
    scene = Scene(queue)
    queue.submit(jobs(1))
    first = scene.taking.next()

    def gone() -> None:
        raise ConnectionError

    monkeypatch.setattr(scene.taking, "urgent", gone)
    with pytest.raises(ConnectionError):
        scene.stretch.run(first)
    assert scene.order == []


def test_a_queue_server_that_is_lost_while_images_are_fetched_fails_no_task(queue):
    scene = Scene(queue)
    queue.submit(jobs(1, 2))

    def gone(job: PredictionJob, key: str) -> np.ndarray:
        raise RedisConnectionError("while the project was looked up")

    scene.stretch.runner.fetcher = BatchFetcher(gone)
    with pytest.raises(RedisConnectionError):
        scene.run()
    assert scene.ended == {}


def test_a_task_without_model_fails_with_the_reason(queue, monkeypatch):
    scene = Scene(queue)

    def missing(project_key: str, version: str) -> ServedModel:
        raise TaskError("no such version", "train it")

    monkeypatch.setattr(scene, "find", missing)
    queue.submit(jobs(1, 2))
    scene.run()
    assert scene.ended == {1: "no such version", 2: "no such version"}
