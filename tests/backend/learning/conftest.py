"""A train worker as a real process with a real queue server; Label Studio, finetuning and gate are doubles."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from learning_doubles import Wishes, write_checkpoint  # noqa: E402

from backend.learning.trainers import living_trainers  # noqa: E402
from backend.learning.train_queue import TrainQueue  # noqa: E402
from backend.learning.runs import RunStore  # noqa: E402
from backend.settings import Settings  # noqa: E402
from training.registry import Registry  # noqa: E402

ROOT = Path(__file__).parents[3]


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
            "redis_url", "model", "registry", "registry_cache", "learning_folder", "learning_lost_s",
            "learning_check_s", "train_after", "train_every_h",
        )  # fmt: skip
        environment = {
            **os.environ,
            **{f"TRANSFINER_{name.upper()}": str(getattr(learning, name)) for name in names},
            "PARENT": str(os.getpid()),
        }
        command = [
            sys.executable,
            str(Path(__file__).parent / "learning_doubles.py"),
            "work",
            str(wishes.folder),
        ]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


__all__ = ["living_trainers"]
