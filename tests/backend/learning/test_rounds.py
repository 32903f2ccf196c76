"""Rounds by a real worker process: recorded, promoted or refused, cancelled, killed, resumed once, one at a time."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path

import pytest
from service_parts import wait_until

from backend.active_models import active_directory
from backend.learning import runs
from backend.learning.trainers import living_trainers
from backend.learning.triggers import BUTTON, COMMAND

PROJECT = "7"
LATER = "2026-01-02T00:00:00+00:00"


def ended(store, run_id):
    """The record, once the round is over."""

    def over():
        run = store.load(PROJECT, run_id)
        return run is not None and run.is_over

    wait_until(over)
    return store.load(PROJECT, run_id)


def digest(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def test_a_request_becomes_a_promoted_version(learning, wishes, queue, store, registry, train_worker, redis):
    wishes.set(new=5, iterations=3)
    train_worker()
    answer = queue.request(PROJECT, BUTTON)
    run = ended(store, answer.run)
    assert (run.state, run.attempts, run.new_annotations) == (runs.PROMOTED, 1, 5)
    assert run.parent == "base-1"
    assert run.classes == ("gear", "leaf")
    assert run.reasons == ("better",)
    assert registry.active(PROJECT) == run.candidate
    assert wishes.done("follow") == [f"follow 7 {run.candidate}"]
    assert [info.status for info in registry.versions(PROJECT)] == ["promoted", "promoted"]
    assert [info.digest for info in registry.snapshots(PROJECT)] == [run.snapshot]
    wait_until(lambda: not queue.current(PROJECT))
    assert not (learning.learning_folder / PROJECT / run.id).exists(), "nothing is left lying about"
    assert b"" == (store.read(PROJECT, run.id, "finetune.log") or b"")
    assert registry.roll_back(PROJECT) == "base-1"


def test_a_refused_candidate_leaves_the_same_file_in_service(
    learning, wishes, queue, store, registry, train_worker
):
    wishes.set(new=1)
    train_worker()
    ended(store, queue.request(PROJECT, BUTTON).run)
    served = active_directory(learning, PROJECT)
    before = digest(served)
    wishes.set(new=1, data="poison", promote=False, at=LATER)
    wait_until(lambda: not queue.current(PROJECT))
    run = ended(store, queue.request(PROJECT, BUTTON).run)
    assert run.state == runs.REJECTED
    assert active_directory(learning, PROJECT) == served
    assert digest(served) == before
    rejected = [info for info in registry.versions(PROJECT) if info.status == "rejected"]
    assert [info.name for info in rejected] == [run.candidate]
    assert "gate earlier 1 best -" in wishes.done("gate")


@pytest.mark.parametrize("trigger", [BUTTON, COMMAND])
def test_nothing_new_trains_nothing(wishes, queue, store, registry, train_worker, trigger):
    """As a doubled, late or forged START_TRAINING would ask for."""
    wishes.set(new=2)
    train_worker()
    ended(store, queue.request(PROJECT, BUTTON).run)
    wait_until(lambda: not queue.current(PROJECT))
    run = ended(store, queue.request(PROJECT, trigger).run)
    assert run.state == runs.UNCHANGED
    assert len(wishes.done("finetune")) == 1
    assert len(registry.versions(PROJECT)) == 2


def test_a_second_request_is_folded_in_and_said(wishes, queue, store, train_worker):
    wishes.set(new=2, iterations=1000, seconds=0.02)
    first = queue.request(PROJECT, BUTTON)
    second = queue.request(PROJECT, BUTTON)
    assert second.run == first.run
    assert not second.is_new
    assert "waits for a worker" in second.message
    train_worker()
    wait_until(lambda: queue.current(PROJECT).get("iteration"))
    third = queue.request(PROJECT, BUTTON)
    assert "is running already; this request is folded into it" in third.message
    current = queue.current(PROJECT)
    assert (current["stage"], current["of"], current["eta_s"]) == ("finetune", 1000, 7.0)
    wishes.set(iterations=1)
    queue.cancel(PROJECT)
    assert ended(store, first.run).state == runs.CANCELLED
    assert ended(store, first.run).folded == 2
    assert wishes.done("stopped"), "the training was asked politely"


def test_what_asks_during_a_round_is_looked_at_after_it(wishes, queue, store, train_worker):
    wishes.set(new=2, iterations=30, seconds=0.05)
    train_worker()
    first = queue.request(PROJECT, BUTTON).run
    wait_until(lambda: queue.current(PROJECT).get("iteration"))
    queue.request(PROJECT, BUTTON)
    wishes.set(at=LATER, data="more", iterations=1)
    ended(store, first)
    wait_until(lambda: [run.state for run in store.newest(PROJECT)] == [runs.PROMOTED, runs.PROMOTED])
    assert wishes.done("finetune from base"), "the first one"
    assert "finetune from p7-" in wishes.done("finetune")[1]
    assert "replay 1" in wishes.done("finetune")[1]


def test_a_killed_worker_is_resumed_once(wishes, queue, store, train_worker):
    wishes.set(new=2, iterations=60, seconds=0.05)
    worker = train_worker()
    run_id = queue.request(PROJECT, BUTTON).run
    wait_until(lambda: queue.current(PROJECT).get("iteration", 0) >= 3)
    worker.kill()
    worker.wait()
    train_worker()
    run = ended(store, run_id)
    assert (run.state, run.attempts) == (runs.PROMOTED, 2)
    begun = [int(line.split()[-1]) for line in wishes.done("begin")]
    assert begun[0] == 0
    assert begun[1] >= 3, "it went on where it was"
    assert len(begun) == 2
    assert len(wishes.done("snapshot")) == 1


def test_a_round_that_kills_its_worker_twice_is_given_up(wishes, queue, store, train_worker):
    wishes.set(new=2, iterations=10_000, seconds=0.05)
    run_id = queue.request(PROJECT, BUTTON).run
    for attempt in (1, 2):
        worker = train_worker()
        wait_until(
            lambda attempt=attempt: (
                (run := store.load(PROJECT, run_id)) and run.attempts == attempt and run.stage == "finetune"
            )
        )
        worker.kill()
        worker.wait()
    train_worker()
    run = ended(store, run_id)
    assert run.state == runs.FAILED
    assert "killed 2 times" in run.error
    assert run.hint


def test_the_queue_server_forgets_and_the_killed_round_goes_on_all_the_same(
    wishes, queue, store, train_worker, redis
):
    """The record in the registry is the truth."""
    wishes.set(new=2, iterations=40, seconds=0.05)
    worker = train_worker()
    run_id = queue.request(PROJECT, BUTTON).run
    wait_until(lambda: queue.current(PROJECT).get("iteration", 0) >= 1)
    worker.kill()
    worker.wait()
    redis.flushall()
    train_worker()
    assert ended(store, run_id).state == runs.PROMOTED


def test_a_stopped_worker_puts_the_round_back(wishes, queue, store, train_worker):
    wishes.set(new=2, iterations=60, seconds=0.05)
    worker = train_worker()
    run_id = queue.request(PROJECT, BUTTON).run
    wait_until(lambda: queue.current(PROJECT).get("iteration", 0) >= 2)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert queue.current(PROJECT)["state"] == "queued"
    train_worker()
    run = ended(store, run_id)
    assert (run.state, run.attempts) == (runs.PROMOTED, 1), "not its fault"
    assert len(wishes.done("begin")) == 2


def test_a_failed_finetuning_says_why_and_the_button_tries_again(
    wishes, queue, store, registry, train_worker
):
    wishes.set(new=2, crash=7)
    train_worker()
    run = ended(store, queue.request(PROJECT, BUTTON).run)
    assert run.state == runs.FAILED
    assert "exit code 7: no memory left" in run.error
    assert store.read(PROJECT, run.id, "finetune.log") == b"no memory left\n"
    assert registry.active(PROJECT) is None
    wishes.set(crash=0)
    wait_until(lambda: not queue.current(PROJECT))
    assert ended(store, queue.request(PROJECT, BUTTON).run).state == runs.PROMOTED


def test_two_workers_never_train_one_project_together(wishes, queue, store, train_worker, redis):
    wishes.set(new=2, iterations=20, seconds=0.05)
    train_worker()
    train_worker()
    wait_until(lambda: len(living_trainers(redis)) == 2)
    first = queue.request(PROJECT, BUTTON).run
    other = queue.request("8", BUTTON).run
    # The same run once more, as a lost and found job would be.
    queue.enqueue(PROJECT, first, 9)
    ended(store, first)
    wait_until(lambda: (run := store.load("8", other)) and run.is_over)
    assert len(wishes.done("begin")) == 2


def test_a_cancelled_request_that_waits_is_gone_at_once(queue, store):
    run = queue.request(PROJECT, BUTTON).run
    assert queue.cancel(PROJECT) == run
    assert queue.current(PROJECT) == {}
    assert queue.request(PROJECT, BUTTON).is_new
