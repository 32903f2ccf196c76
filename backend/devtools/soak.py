"""The `soak` command: break parts of a service, one by one or at random, while tasks are requested.

Answered requests are not repeated and no person helps: the service must deliver every deferred prediction.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click
import requests

from backend.devtools.harness import LINKED_WORKERS, ServiceHarness
from backend.processes.waiting import wait_until
from backend.queue.keys import DEFERRED, RUNNING
from backend.settings import load_settings

CHUNK = 6
# Tasks are requested again after this time, in s, so that pushes can arrive before.
PATIENCE_S = 3.0
SETTLE_S = 3.0
WIDTH_PX = 32


@dataclass
class Verdict:
    """The outcome of the tasks of one fault; none may be lost, stored twice or failed without a reason."""

    fault: str
    tasks: int
    stored_once: int
    failed: dict[int, str]
    lost: list[int]
    doubled: list[int]
    seconds: float
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        return not self.lost and not self.doubled


class Annotators:
    """Requests `count` tasks until each is stored or has failed with a reason; stores answers as Label Studio does.

    Args:
        asks_again: request answered tasks again that are not stored; else only those whose request was refused.
    """

    def __init__(self, harness: ServiceHarness, first_task: int, count: int, *, asks_again: bool = True) -> None:
        self.asks_again = asks_again
        self.answered: set[int] = set()
        self.must_fail: set[int] = set()
        self.harness = harness
        self.ids = list(range(first_task, first_task + count))
        self.widths = dict.fromkeys(self.ids, WIDTH_PX)
        self.failed: dict[int, str] = {}
        self.refused = 0
        self._pool = ThreadPoolExecutor(8)
        self._thread = threading.Thread(target=self._ask_until_done, daemon=True)
        self.begun = time.monotonic()
        self.seconds = 0.0

    def start(self) -> Annotators:
        self._thread.start()
        return self

    def wait(self, give_up_s: float) -> Annotators:
        """Wait until every task is stored or has failed with a reason."""
        self._thread.join(give_up_s)
        self.seconds = time.monotonic() - self.begun
        return self

    def verdict(self, fault: str) -> Verdict:
        """The outcome of the tasks; call it `SETTLE_S` after the wait, because copies come late."""
        stored_counts = self.harness.label_studio.stored()
        return Verdict(
            fault,
            len(self.ids),
            stored_once=sum(stored_counts[number] == 1 for number in self.ids),
            failed=dict(self.failed),
            lost=[n for n in self.ids if (not stored_counts[n] or n in self.must_fail) and not self.failed.get(n)],
            doubled=[n for n in self.ids if stored_counts[n] > 1],
            seconds=round(self.seconds, 1),
            notes={"requests refused": self.refused},
        )

    def _open(self) -> list[int]:
        stored_counts = self.harness.label_studio.stored()
        return [number for number in self.ids if not stored_counts[number] and number not in self.failed]

    def _ask_until_done(self) -> None:
        while pending := self._open():
            pending = [number for number in pending if self.asks_again or number not in self.answered]
            chunks = [pending[start : start + CHUNK] for start in range(0, len(pending), CHUNK)]
            list(self._pool.map(self._ask, chunks))
            end = time.monotonic() + PATIENCE_S
            while self._open() and time.monotonic() < end:
                time.sleep(0.1)

    def _image(self, number: int) -> str:
        return f"{self.harness.images.url}/data/upload/{self.widths[number]}/{number}.png"

    def _ask(self, numbers: list[int]) -> None:
        try:
            self.harness.set_up_project()  # as Label Studio does each time
            facts = self.harness.predict({number: self._image(number) for number in numbers}, timeout_s=100)
        except requests.RequestException:
            self.refused += 1
            time.sleep(0.5)
            return
        self.answered.update(numbers)
        for error in facts.get("errors", ()):
            self.failed[int(error["task"])] = str(error["error"])
        results = facts["results"]
        if len(results) == len(numbers):
            rows = [{"task": task, **row} for task, row in zip(numbers, results, strict=True) if row]
            self.harness.label_studio.store(rows)


GIVE_UP_S = 300.0
CRASH_WIDTH_PX = 48
BATCH_S = 0.4
# Of a batch that is never ready within the harness's deadline of 4 s, however few tasks there are.
LATE_S = 5.0
# At random: tasks asked for at once, and the longest pause between two faults in s.
TASKS = 24
LONGEST_PAUSE_S = 4.0
# Longer than the harness's `worker_lost_s`.
LONGEST_FAULT_S = 8.0
# A correction, a changed zone, a machine that slept over the weekend.
STEPS_S = (20.0, 2 * 3600.0, 30 * 3600.0, -2 * 3600.0)
Action = Callable[[ServiceHarness, random.Random], None]


def kill_worker(harness: ServiceHarness, _: random.Random) -> None:
    """kill -9; started again, as a supervisor does."""
    worker = harness.workers.pop(0)
    worker.kill()
    worker.wait()
    harness.start_workers(1, seconds=BATCH_S, is_awaited=False)


def freeze_worker(harness: ServiceHarness, chance: random.Random) -> None:
    """SIGSTOP to a worker, sometimes for so long that others take over its tasks."""
    _freeze(chance.choice(harness.workers).pid, chance)


def freeze_api(harness: ServiceHarness, chance: random.Random) -> None:
    """SIGSTOP to the API with requests in flight; their claims may end meanwhile."""
    assert harness.api
    _freeze(harness.api.pid, chance)


def freeze_queue(harness: ServiceHarness, chance: random.Random) -> None:
    """SIGSTOP to the queue server: it does not answer, and loses nothing."""
    assert harness.queue
    _freeze(harness.queue.pid, chance)


def cut_off(harness: ServiceHarness, chance: random.Random) -> None:
    """One process loses its connections to the queue server, or they go silent."""
    link = chance.choice(harness.links)
    with chance.choice((link.cut, link.held))():
        time.sleep(chance.uniform(0.5, LONGEST_FAULT_S))


def restart_queue(harness: ServiceHarness, chance: random.Random) -> None:
    """kill -9 of the queue server, which reads its log when it starts again."""
    harness.end_queue()
    time.sleep(chance.uniform(0.0, 3.0))
    harness.start_queue()


def restart_api(harness: ServiceHarness, _: random.Random) -> None:
    """kill -9 of the API with requests in flight."""
    harness.end_api()
    harness.start_api(is_awaited=False)


def forget_all(harness: ServiceHarness, _: random.Random) -> None:
    """kill -9 of API and queue server, whose log is lost: only the API's file of promises is left."""
    harness.end_api()
    harness.end_queue(forgets=True)
    harness.start_queue()
    harness.start_api(is_awaited=False)


def step_clock(harness: ServiceHarness, chance: random.Random) -> None:
    """Step the wall clock of all processes."""
    assert harness.clock
    with harness.connection() as connection:
        harness.clock.step(chance.choice(STEPS_S), connection)


def fill_queue(harness: ServiceHarness, chance: random.Random) -> None:
    """The queue server refuses writes for a while."""
    with harness.connection() as connection:
        limit = connection.config_get("maxmemory")["maxmemory"]
        connection.config_set("maxmemory", "1")
        try:
            time.sleep(chance.uniform(0.5, 4.0))
        finally:
            connection.config_set("maxmemory", limit)


AT_RANDOM: tuple[Action, ...] = (
    kill_worker,
    freeze_worker,
    freeze_api,
    freeze_queue,
    cut_off,
    restart_queue,
    restart_api,
    forget_all,
    step_clock,
    fill_queue,
)


def flush_queue(harness: ServiceHarness, _: random.Random) -> None:
    """Empty the queue server."""
    with harness.connection() as connection:
        connection.flushall()


def stop_label_studio(harness: ServiceHarness, _: random.Random) -> None:
    """Stop Label Studio for some seconds while predictions are pushed; the next push is stored but answers 504."""
    harness.end_workers()
    harness.start_workers(2, seconds=LATE_S)

    def is_deferred() -> bool:
        with harness.connection() as connection:
            return bool(connection.hlen(DEFERRED))

    wait_until(is_deferred, "A request that missed its deadline", 60)
    harness.label_studio.forgets_to_answer = 1
    harness.label_studio.down()
    time.sleep(4)
    harness.label_studio.up()


def _freeze(pid: int, chance: random.Random) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(chance.uniform(0.5, LONGEST_FAULT_S))
    finally:
        os.kill(pid, signal.SIGCONT)


CRASHING_TASK = "crashing-task"
ACTIONS = {action.__name__.replace("_", "-"): action for action in (*AT_RANDOM, flush_queue, stop_label_studio)}
FAULTS = (*ACTIONS, CRASHING_TASK)


def run_fault(harness: ServiceHarness, name: str, annotators: Annotators, seed: int = 0) -> Verdict:
    """Break one thing while two healthy workers predict tasks; the outcome of the tasks."""
    if name == CRASHING_TASK:
        _crash(harness, annotators)
    else:
        annotators.start()
        wait_until(lambda: _is_running(harness), "A running batch", 60)
        ACTIONS[name](harness, random.Random(seed))
    annotators.wait(GIVE_UP_S)
    time.sleep(SETTLE_S)
    return annotators.verdict(name)


def _is_running(harness: ServiceHarness) -> bool:
    with harness.connection() as connection:
        return any(connection.scan_iter(f"{RUNNING}*"))


def _crash(harness: ServiceHarness, annotators: Annotators) -> None:
    """Run a task that kills its workers: it must be parked with a reason, and all others predicted."""
    harness.end_workers()
    killer = annotators.ids[len(annotators.ids) // 2]
    annotators.widths[killer] = CRASH_WIDTH_PX
    annotators.must_fail.add(killer)
    with _kept_alive(harness):
        annotators.start().wait(GIVE_UP_S)


@contextmanager
def _kept_alive(harness: ServiceHarness) -> Iterator[None]:
    """Restarts workers that die, as the supervisor or Kubernetes would."""
    stop = threading.Event()

    def restart() -> None:
        while not stop.wait(0.2):
            harness.workers = [worker for worker in harness.workers if worker.poll() is None]
            if len(harness.workers) < 2:
                harness.start_workers(1, seconds=BATCH_S, crash_width=CRASH_WIDTH_PX)

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)


def run_random(seconds: float, seed: int) -> Verdict:
    """Break something again and again for `seconds`, then wait until every task is stored or has a reason."""
    chance = random.Random(seed)
    faults: Counter[str] = Counter()
    # Workers are killed by the test, not by their tasks, so no task may be parked for it.
    with ServiceHarness(is_breakable=True, max_attempts="1000") as harness:
        harness.start_workers(LINKED_WORKERS, seconds=BATCH_S)
        harness.set_up_project()
        groups: list[Annotators] = []
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            groups.append(Annotators(harness, 1 + len(groups) * TASKS, TASKS, asks_again=False).start())
            time.sleep(chance.uniform(0.0, LONGEST_PAUSE_S))
            action = chance.choice(AT_RANDOM)
            faults[action.__name__] += 1
            action(harness, chance)
        give_up_at = time.monotonic() + GIVE_UP_S
        for group in groups:
            group.wait(max(0.0, give_up_at - time.monotonic()))
        ended_s = time.monotonic() - begun
        time.sleep(SETTLE_S)
        verdicts = [group.verdict("random") for group in groups]
        lost_tasks = [task for verdict in verdicts for task in verdict.lost]
        places = Counter(harness.whereabouts(lost_tasks))
    return Verdict(
        f"random {seed}",
        tasks=sum(verdict.tasks for verdict in verdicts),
        stored_once=sum(verdict.stored_once for verdict in verdicts),
        failed={task: reason for verdict in verdicts for task, reason in verdict.failed.items()},
        lost=lost_tasks,
        doubled=[task for verdict in verdicts for task in verdict.doubled],
        seconds=round(ended_s, 1),
        notes={**faults, **({"lost are": dict(places)} if places else {})},
    )


@click.command()
@click.option("--fault", "faults", multiple=True, type=click.Choice(FAULTS), help="Only these.")
@click.option("--tasks", default=36, help="Tasks asked for during each fault.")
@click.option("--random", "is_random", is_flag=True, help="Faults at random moments instead, for --seconds.")
@click.option("--seconds", default=600.0, help="How long faults are random.")
@click.option("--seed", default=0, help="The same seed chooses the same faults.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def soak(faults: Sequence[str], tasks: int, is_random: bool, seconds: float, seed: int, as_json: bool) -> None:
    """Break every part of a service on this machine while tasks are asked for; each must be stored exactly once.

    Starts a queue server, an API, two workers with a stub for a model, and a stand-in for Label Studio, on loopback.

    \b
    Example: transfiner soak --fault kill-worker --fault restart-queue
    """
    load_settings()  # wrong variables are refused before any process is started
    verdicts = []
    for verdict in [run_random(seconds, seed)] if is_random else run_faults(faults or FAULTS, tasks, seed):
        verdicts.append(verdict)
        if not as_json:
            click.echo(line(verdict))
    if as_json:
        rows = [{**dataclasses.asdict(verdict), "good": verdict.is_good} for verdict in verdicts]
        click.echo(json.dumps(rows, indent=2))
    sys.exit(0 if all(verdict.is_good for verdict in verdicts) else 1)


def run_faults(faults: Sequence[str], tasks: int, seed: int) -> Iterator[Verdict]:
    """One harness for all; each fault gets tasks of its own and two healthy workers."""
    with ServiceHarness(is_breakable=True) as harness:
        for number, name in enumerate(faults):
            harness.end_workers()
            harness.start_workers(2, seconds=BATCH_S)
            harness.set_up_project()
            # The reason why a deferred task was parked is only in the answer to another request.
            asks_again = name == CRASHING_TASK
            yield run_fault(harness, name, Annotators(harness, 1 + number * tasks, tasks, asks_again=asks_again), seed)


def line(verdict: Verdict) -> str:
    """A verdict for people."""
    mark = click.style("ok  ", fg="green") if verdict.is_good else click.style("BAD ", fg="red")
    notes = ", ".join(f"{name}: {value}" for name, value in verdict.notes.items())
    return (
        f"{mark} {verdict.fault:18} {verdict.stored_once}/{verdict.tasks} stored once, {len(verdict.failed)} failed "
        f"with a reason, {len(verdict.lost)} lost, {len(verdict.doubled)} doubled, {verdict.seconds} s ({notes})"
    )
