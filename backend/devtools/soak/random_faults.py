"""Faults at random moments, from a seed: everything is killed, frozen, cut off, filled up or put on another time.

Nobody asks again for what was answered, and no person helps: what was promised must be kept.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backend.devtools.soak.annotators import SETTLE_S, Annotators, Verdict
from backend.devtools.soak.faults import BATCH_S, GIVE_UP_S, fill_queue
from backend.devtools.soak.harness import LINKED_WORKERS, ServiceHarness

# Tasks asked for at once, and the longest pause between two faults in s.
TASKS = 24
LONGEST_PAUSE_S = 4.0
# Longer than the stage's `worker_lost_s`.
LONGEST_FAULT_S = 8.0
# Of the issue that these tests come from: a correction, a changed zone, a machine that slept over the weekend.
STEPS_S = (20.0, 2 * 3600.0, 30 * 3600.0, -2 * 3600.0)


def kill_worker(harness: ServiceHarness, _: random.Random) -> None:
    """kill -9; started again, as a supervisor does."""
    worker = harness.workers.pop(0)
    worker.kill()
    worker.wait()
    harness.start_workers(1, seconds=BATCH_S, is_awaited=False)


def freeze_worker(harness: ServiceHarness, chance: random.Random) -> None:
    """Sometimes for so long that it is thought dead."""
    with _frozen(chance.choice(harness.workers).pid):
        time.sleep(chance.uniform(0.5, LONGEST_FAULT_S))


def freeze_api(harness: ServiceHarness, chance: random.Random) -> None:
    """With requests in flight; their claims may end meanwhile."""
    assert harness.api
    with _frozen(harness.api.pid):
        time.sleep(chance.uniform(0.5, LONGEST_FAULT_S))


def freeze_queue(harness: ServiceHarness, chance: random.Random) -> None:
    """It answers nobody and loses nothing."""
    assert harness.queue
    with _frozen(harness.queue.pid):
        time.sleep(chance.uniform(0.5, LONGEST_FAULT_S))


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


def fill(harness: ServiceHarness, chance: random.Random) -> None:
    """The queue server refuses writes for a while."""
    fill_queue(harness, chance.uniform(0.5, 4.0))


ACTIONS: tuple[Callable[[ServiceHarness, random.Random], None], ...] = (
    kill_worker,
    freeze_worker,
    freeze_api,
    freeze_queue,
    cut_off,
    restart_queue,
    restart_api,
    forget_all,
    step_clock,
    fill,
)


@contextmanager
def _frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def run_random(seconds: float, seed: int) -> Verdict:
    """Break something again and again for `seconds`, then wait until every task is stored or has a reason."""
    chance = random.Random(seed)
    faults: Counter[str] = Counter()
    where: Counter[str] = Counter()
    # A task is innocent of what is done to its workers here: it must not be parked however often they are killed.
    with ServiceHarness(is_breakable=True, max_attempts="1000") as harness:
        harness.start_workers(LINKED_WORKERS, seconds=BATCH_S)
        harness.set_up_project()
        groups: list[Annotators] = []
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            groups.append(Annotators(harness, 1 + len(groups) * TASKS, TASKS, asks_again=False).start())
            time.sleep(chance.uniform(0.0, LONGEST_PAUSE_S))
            action = chance.choice(ACTIONS)
            faults[action.__name__] += 1
            action(harness, chance)
        give_up_at = time.monotonic() + GIVE_UP_S
        for group in groups:
            group.wait(max(0.0, give_up_at - time.monotonic()))
        ended_s = time.monotonic() - begun
        time.sleep(SETTLE_S)
        verdicts = [group.verdict("random") for group in groups]
        lost = [task for verdict in verdicts for task in verdict.lost]
        where.update(harness.whereabouts(lost))
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
