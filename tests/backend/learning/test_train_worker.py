"""A real worker process: killed while it trains, and asked to end."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from backend.learning import round as runs
from backend.learning.train_worker import run_next
from backend.queue.keys import TRAININGS
from backend.queue.train_queue import BUTTON, living_trainers
from tests.support.service import wait_until

pytestmark = pytest.mark.service

PROJECT = "7"


def ended(store, run_id):
    wait_until(lambda: (run := store.load(PROJECT, run_id)) and run.is_over)
    return store.load(PROJECT, run_id)


def test_a_killed_worker_is_resumed_once_and_a_stopped_one_puts_its_round_back(
    wishes, queue, store, redis, train_worker
):
    wishes.set(new=2, iterations=80, seconds=0.05)
    worker = train_worker()
    run_id = queue.request(PROJECT, BUTTON).run
    wait_until(lambda: queue.current(PROJECT).get("iteration", 0) >= 3)
    worker.kill()
    worker.wait()
    second = train_worker()
    wait_until(lambda: len(wishes.done("begin")) == 2)
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0
    assert queue.current(PROJECT)["state"] == "queued"
    train_worker()
    run = ended(store, run_id)
    assert (run.state, run.attempts) == (runs.PROMOTED, 2), "being stopped is no attempt"
    begun = [int(line.split()[-1]) for line in wishes.done("begin")]
    assert begun[0] == 0
    assert begun[1] >= 3, "it went on where it was"
    assert len(wishes.done("snapshot")) == 1
    assert len(living_trainers(redis)) >= 1


@pytest.mark.parametrize(
    "name",
    [
        '["os.system", null, ["touch /tmp/never"], {}]',
        "backend.learning.train_worker.run_train_worker",
        "7",
        ":run-1",
        "7:",
        "7:../../run-1",
        "../7:run-1",
        "7:run-1:more",
        b"\x80\x04c",
    ],
)
def test_only_trainings_run(redis, queue, name):
    """Whoever can write to the queue must not run what he likes."""
    runs: list[tuple[str, ...]] = []
    learner = SimpleNamespace(connection=redis, queue=queue, learn=lambda *names: runs.append(names))
    redis.rpush(TRAININGS, name, "7:run-1")
    assert run_next(learner)
    assert runs == [("7", "run-1")]
    assert not run_next(learner)
