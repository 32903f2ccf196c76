"""Faults: parts are killed, frozen, cut off, filled up, emptied or put on another time, one by one or at random.

Nobody asks again for what was answered, and no person helps: what was promised must be kept.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backend.devtools.soak.annotators import SETTLE_S, Annotators, Verdict
from backend.devtools.soak.harness import LINKED_WORKERS, ServiceHarness
from backend.processes.waiting import wait_until
from backend.queue.keys import DEFERRED, RUNNING

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
    """Sometimes for so long that it is thought dead."""
    _freeze(chance.choice(harness.workers).pid, chance)


def freeze_api(harness: ServiceHarness, chance: random.Random) -> None:
    """With requests in flight; their claims may end meanwhile."""
    assert harness.api
    _freeze(harness.api.pid, chance)


def freeze_queue(harness: ServiceHarness, chance: random.Random) -> None:
    """It answers nobody and loses nothing."""
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
    """kill -9 of API and queue server, whose log is lost: only what the API has noted in its file is left."""
    harness.end_api()
    harness.end_queue(forgets=True)
    harness.start_queue()
    harness.start_api(is_awaited=False)


def step_clock(harness: ServiceHarness, chance: random.Random) -> None:
    """All clocks of the wall are set."""
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
    """Somebody empties the queue server."""
    with harness.connection() as connection:
        connection.flushall()


def stop_label_studio(harness: ServiceHarness, _: random.Random) -> None:
    """Label Studio is away for some seconds while late predictions are pushed; the next push is stored, then "504"."""
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
    """Break one thing while tasks are being predicted by two healthy workers; what became of the tasks."""
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
    """One task kills every worker that takes it: parked with a reason after two, all others are predicted."""
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
    # A task is innocent of what is done to its workers here: it must not be parked however often they are killed.
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
        lost = [task for verdict in verdicts for task in verdict.lost]
        where = Counter(harness.whereabouts(lost))
    return Verdict(
        f"random {seed}",
        tasks=sum(verdict.tasks for verdict in verdicts),
        stored_once=sum(verdict.stored_once for verdict in verdicts),
        failed={task: reason for verdict in verdicts for task, reason in verdict.failed.items()},
        lost=lost,
        doubled=[task for verdict in verdicts for task in verdict.doubled],
        seconds=round(ended_s, 1),
        notes={**faults, **({"lost are": dict(where)} if where else {})},
    )
