"""Rounds: recorded, promoted or refused, cancelled, taken over, one at a time. Finetuning and gate are processes."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest

from backend.learning import round as runs
from backend.learning.round import PRESET, Run
from backend.learning.train_worker import Learner, Watcher
from backend.queue.keys import learning_lock_key
from backend.queue.train_queue import BUTTON, COMMAND
from backend.versions.resolve import active_directory, version_directory
from tests.support.learning_doubles import write_checkpoint
from tests.support.service import wait_until

pytestmark = pytest.mark.service

PROJECT = "7"
LATER = "2026-01-02T00:00:00+00:00"
OLD_RUN = "20260101-000000-abcdef"


def digest(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def test_a_request_becomes_a_promoted_version(learning, wishes, rounds, store, registry, queue):
    wishes.set(new=5, iterations=3)
    run = rounds.ask()
    assert (run.state, run.attempts, run.new_annotations) == (runs.PROMOTED, 1, 5)
    assert (run.parent, run.classes, run.reasons) == ("base-1", ("gear", "leaf"), ("better",))
    assert run.order == "by certainty"
    assert registry.active(PROJECT) == run.candidate
    assert wishes.done("follow") == ["follow 7"]
    assert [info.status for info in registry.versions(PROJECT)] == ["promoted", "promoted"]
    assert [info.digest for info in registry.snapshots(PROJECT)] == [run.snapshot]
    assert queue.current(PROJECT) == {}
    assert not (learning.learning_folder / PROJECT / run.id).exists(), "nothing is left lying about"
    assert store.read(PROJECT, run.id, "finetune.log") == b""
    assert run.losses == ((3, 0.3333),) or run.losses[-1][0] == 3
    assert {"snapshot", "finetune", "gate", "promote"} <= run.stage_s.keys()
    assert version_directory(learning, f"{PROJECT}.123", "base-1") is not None
    assert version_directory(learning, f"{PROJECT}.123", "other") is None
    assert registry.roll_back(PROJECT) == "base-1", "the first promotion can be taken back, too"


def test_a_refused_candidate_leaves_the_same_file_in_service(learning, wishes, rounds, registry):
    wishes.set(new=1)
    rounds.ask()
    directory = active_directory(learning, f"{PROJECT}.1795339022")
    before = digest(directory)
    wishes.set(new=1, data="poison", promote=False, at=LATER)
    run = rounds.ask()
    assert run.state == runs.REJECTED
    assert active_directory(learning, PROJECT) == directory
    assert digest(directory) == before
    assert [info.name for info in registry.versions(PROJECT) if info.status == "rejected"] == [run.candidate]
    assert "gate earlier 1 best -" in wishes.done("gate")


@pytest.mark.parametrize("trigger", [BUTTON, COMMAND])
def test_nothing_new_trains_nothing(wishes, rounds, registry, trigger):
    """As a doubled, late or forged START_TRAINING would ask for."""
    wishes.set(new=2)
    rounds.ask()
    assert rounds.ask(trigger).state == runs.UNCHANGED
    assert len(wishes.done("finetune")) == 1
    assert len(registry.versions(PROJECT)) == 2


def test_what_cannot_be_judged_is_said_before_training(wishes, rounds):
    wishes.set(new=2, parts={"train_images": 3, "holdout_images": 0})
    run = rounds.ask()
    assert run.state == runs.UNCHANGED
    assert "3 annotated image(s) leave none to judge by; annotate 1 more" in run.reasons[0]
    assert f"transfiner learn --project {PROJECT}" in run.hint
    assert not wishes.done("finetune")
    run = rounds.ask(COMMAND)
    assert len(wishes.done("finetune")) == 1, "the command line trains all the same"


def test_a_second_request_is_folded_in_and_said(wishes, rounds, queue):
    wishes.set(new=2, iterations=2000, seconds=0.02)
    waiting = queue.request(PROJECT, BUTTON)
    second = queue.request(PROJECT, BUTTON)
    assert (second.run, second.is_new) == (waiting.run, False)
    assert "waits for a worker already; this request is folded into it." in second.message
    assert queue.cancel(PROJECT) == waiting.run
    assert queue.current(PROJECT) == {}, "what only waits is gone at once"
    run = rounds.begin()
    third = queue.request(PROJECT, BUTTON)
    assert "is running already; this request is folded into it" in third.message
    current = queue.current(PROJECT)
    assert (current["stage"], current["of"], current["eta_s"]) == ("finetune", 2000, 7.0)
    queue.cancel(PROJECT)
    record = rounds.finish(run)
    assert (record.state, record.folded) == (runs.CANCELLED, 1)
    assert wishes.done("stopped"), "the training was asked politely"
    assert queue.current(PROJECT) == {}, "what was folded in is cancelled, too"


def test_what_asks_during_a_round_is_looked_at_after_it(wishes, rounds, queue, learner):
    wishes.set(new=2, iterations=20, seconds=0.05)
    first = rounds.begin()
    queue.request(PROJECT, BUTTON)
    wishes.set(at=LATER, data="more", iterations=1)
    assert rounds.finish(first).state == runs.PROMOTED
    again = queue.current(PROJECT)
    assert (again["state"], again["trigger"]) == ("queued", BUTTON)
    learner.learn(PROJECT, again["run"])
    assert rounds.record(again["run"]).state == runs.PROMOTED
    finetunings = wishes.done("finetune")
    assert finetunings[0] == "finetune from base replay 0"
    assert finetunings[1].startswith("finetune from p7-")
    assert finetunings[1].endswith("replay 1")


@pytest.mark.parametrize("queue_server_forgot", [False, True])
def test_a_round_whose_worker_died_is_taken_over(wishes, rounds, queue, store, learner, queue_server_forgot):
    """The record in the registry is the truth."""
    wishes.set(new=2)
    if not queue_server_forgot:
        queue.note(PROJECT, OLD_RUN, state="running", trigger=BUTTON, attempts=1)
    store.save(Run(OLD_RUN, PROJECT, trigger=BUTTON, attempts=1, stage="finetune"))
    assert Watcher(learner).adopt(PROJECT) == OLD_RUN
    assert Watcher(learner).adopt(PROJECT) == "", "once"
    assert queue.current(PROJECT)["state"] == "queued"
    learner.learn(PROJECT, OLD_RUN)
    assert (rounds.record(OLD_RUN).state, rounds.record(OLD_RUN).attempts) == (runs.PROMOTED, 2)


def test_a_round_that_killed_its_worker_twice_is_given_up(queue, store, learner):
    queue.note(PROJECT, OLD_RUN, state="running", trigger=BUTTON)
    store.save(Run(OLD_RUN, PROJECT, trigger=BUTTON, attempts=2, stage="finetune"))
    assert Watcher(learner).adopt(PROJECT) == ""
    run = store.load(PROJECT, OLD_RUN)
    assert run.state == runs.FAILED
    assert "killed 2 times during the stage 'finetune'" in run.error
    assert run.hint
    assert queue.current(PROJECT) == {}


def test_a_request_that_fell_out_of_the_list_is_put_back(queue, learner):
    run = queue.request(PROJECT, BUTTON).run
    assert queue.take() == (PROJECT, run), "by a worker that dies before it begins"
    assert Watcher(learner).adopt(PROJECT) == "", "it may be on its way"
    queue.note(PROJECT, run, requested_at=1.0)
    assert Watcher(learner).adopt(PROJECT) == run
    assert queue.is_listed(PROJECT, run)


def test_a_failed_finetuning_says_why_and_the_button_tries_again(wishes, rounds, store, registry):
    wishes.set(new=2, crash=7)
    run = rounds.ask()
    assert run.state == runs.FAILED
    assert "exit code 7: no memory left" in run.error
    assert store.read(PROJECT, run.id, "finetune.log") == b"no memory left\n"
    assert registry.active(PROJECT) is None
    wishes.set(crash=0)
    assert rounds.ask().state == runs.PROMOTED


def test_a_version_whose_gate_failed_stays_as_a_candidate(wishes, rounds, store, registry):
    wishes.set(new=1, gate_crash=5)
    run = rounds.ask()
    assert (run.state, run.order) == (runs.FAILED, "")
    assert "the gate ended with exit code 5: no verdict" in run.error
    assert store.read(PROJECT, run.id, "gate.log") == b"no verdict\n"
    assert [(info.name, info.status) for info in registry.versions(PROJECT)] == [(run.candidate, "candidate")]


def test_label_studio_away_fails_the_round_with_its_reason(wishes, rounds):
    wishes.set(new=2, away=True)
    run = rounds.ask()
    assert (run.state, run.error) == (runs.FAILED, "Label Studio is away")


def test_two_workers_never_train_one_project_together(learning, wishes, rounds, queue, redis, learner):
    wishes.set(new=2, iterations=20, seconds=0.05)
    run = rounds.begin()
    other = Learner(learning, redis, "other", learner.label_studio, learner.command)
    # The same run once more, as a lost and found job would be.
    late = threading.Thread(target=other.learn, args=(PROJECT, run))
    late.start()
    assert rounds.finish(run).state == runs.PROMOTED
    late.join(60)
    assert len(wishes.done("begin")) == 1


def test_a_lost_lock_ends_the_training(wishes, rounds, redis, learning):
    wishes.set(new=2, iterations=2000, seconds=0.02)
    run = rounds.begin()
    redis.set(learning_lock_key(PROJECT), "somebody else")
    record = rounds.finish(run)
    assert not record.is_over, "it is the other's now"
    wait_until(lambda: wishes.done("stopped"))


def test_a_worker_that_was_frozen_promotes_nothing(learning, wishes, rounds, redis, registry):
    """Its own look at the lock is long ago: another one may have promoted since."""
    rounds.learner.settings = learning.model_copy(update={"learning_lost_s": 3000.0})
    wishes.set(new=2, iterations=20, seconds=0.05)
    run = rounds.begin()
    redis.set(learning_lock_key(PROJECT), "somebody else")
    assert not rounds.finish(run).is_over
    assert registry.active(PROJECT) is None


def test_unknown_labels_are_learned_few_shot(learning, wishes, rounds, tmp_path):
    """Without a hold-out, too: cross-validation judges."""
    photos = write_checkpoint(tmp_path / "photos", "photos-1", "photos")
    for directory, changes in ((learning.model, {"classes": ["cat"]}), (photos, {"preset": PRESET})):
        facts = json.loads((directory / "metadata.json").read_text())
        (directory / "metadata.json").write_text(json.dumps({**facts, **changes}))
    rounds.learner.settings = learning.model_copy(update={"prompt_model": photos})
    wishes.set(new=2, parts={"train_images": 3, "holdout_images": 0})
    run = rounds.ask()
    assert (run.state, run.method) == (runs.PROMOTED, "few-shot")
    assert wishes.done("few-shot") == ["few-shot from photos against base"]
    assert not wishes.done("finetune")
    assert {"looking", "snapshot", "few-shot", "gate", "promote"} <= set(run.stage_s)
