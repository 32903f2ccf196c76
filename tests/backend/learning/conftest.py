"""A train worker as a real process with a real queue server; Label Studio, finetuning and gate are doubles."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from backend.learning.round import Run, RunStore
from backend.learning.train_worker import Learner
from backend.queue.train_queue import TrainQueue
from backend.settings import Settings
from tests.support.learning_doubles import Wishes, double_command, write_checkpoint
from tests.support.service import wait_until
from training.registry import Registry

ROOT = Path(__file__).parents[3]
PROJECT = "7"


class Rounds:
    """Runs what was asked for, at once or beside the test."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.threads: list[threading.Thread] = []

    def ask(self, trigger: str = "button") -> Run:
        """Ask, learn, and the record."""
        run = self.learner.queue.request(PROJECT, trigger).run
        self.learner.learn(PROJECT, run)
        return self.record(run)

    def begin(self, trigger: str = "button") -> str:
        """Ask, and learn beside the test until `finish`; the id of the run, whose finetuning has begun."""
        run = self.learner.queue.request(PROJECT, trigger).run
        self.threads.append(threading.Thread(target=self.learner.learn, args=(PROJECT, run)))
        self.threads[-1].start()
        wait_until(lambda: self.learner.queue.current(PROJECT).get("iteration"))
        return run

    def finish(self, run: str) -> Run:
        for thread in self.threads:
            thread.join(120)
        return self.record(run)

    def record(self, run: str) -> Run:
        record = self.learner.store.load(PROJECT, run)
        assert record is not None
        return record


@pytest.fixture
def learning(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with an empty registry and a model that can be published."""
    return settings.model_copy(
        update={
            "model": write_checkpoint(tmp_path / "base", "base-1", "base"),
            "registry": str(tmp_path / "registry"),
            "registry_cache": tmp_path / "cache",
            "learning_folder": tmp_path / "learning",
            "learning_lost_s": 3.0,
            "learning_check_s": 1.0,
        }
    )


@pytest.fixture
def wishes(tmp_path: Path) -> Wishes:
    folder = tmp_path / "wishes"
    folder.mkdir()
    return Wishes(folder)


@pytest.fixture
def queue(redis, learning: Settings) -> TrainQueue:
    return TrainQueue(redis)


@pytest.fixture
def store(learning: Settings) -> RunStore:
    return RunStore(learning.registry)


@pytest.fixture
def registry(learning: Settings) -> Registry:
    return Registry(learning.registry)


@pytest.fixture
def train_worker(learning: Settings, wishes: Wishes) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a worker process; every one of them is ended."""
    processes = []

    def start() -> subprocess.Popen[bytes]:
        names = (
            "redis_url",
            "model",
            "registry",
            "registry_cache",
            "learning_folder",
            "learning_lost_s",
            "learning_check_s",
            "train_after",
            "train_every_h",
        )
        environment = {
            **os.environ,
            **{f"TRANSFINER_{name.upper()}": str(getattr(learning, name)) for name in names},
            "PARENT": str(os.getpid()),
        }
        command = [sys.executable, "-m", "tests.support.learning_doubles", "work", str(wishes.folder)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def learner(learning: Settings, wishes: Wishes, redis) -> Learner:
    """The worker's part that learns, in this process; only its finetuning and gate are processes."""
    return Learner(learning, redis, "me", wishes, partial(double_command, wishes))


@pytest.fixture
def rounds(learner: Learner) -> Rounds:
    return Rounds(learner)
