"""Two processes over gloo train as one does with the same batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.engine.distributed import threads_each

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


def start(folder: Path, rank: int, count: int, port: int) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    group = {"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in group.items()}
    command = [sys.executable, "-m", "tests.training.engine.distributed_training", str(folder)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def finish(running: list[subprocess.Popen[str]]) -> None:
    try:
        for process in running:
            output, _ = process.communicate(timeout=500)
            assert process.returncode == 0, output
    finally:
        for process in running:
            process.kill()
            process.wait()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["total"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def test_two_processes_give_the_losses_and_weights_of_one(tmp_path: Path) -> None:
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    finish([start(alone, 0, 1, 0)])
    port = free_port()
    finish([start(pair, rank, 2, port) for rank in (0, 1)])
    assert len(losses(alone)) == 3
    torch.testing.assert_close(torch.tensor(losses(pair)), torch.tensor(losses(alone)), rtol=1e-5, atol=1e-6)
    expected = torch.load(alone / "weights_0.pt", weights_only=True)
    for rank in (0, 1):
        weights = torch.load(pair / f"weights_{rank}.pt", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("cores", "processes", "threads", "threads_expected"),
    [(2, "2", 2, 1), (2, "2", 1, 1), (8, "2", 3, 3), (8, "2", 8, 4), (4, None, 2, 2), (1, "4", 1, 1)],
)
def test_processes_share_the_cores(monkeypatch, cores, processes, threads, threads_expected) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert threads_each() == threads_expected
