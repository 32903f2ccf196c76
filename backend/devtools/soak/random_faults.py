"""Faults at random moments, from a seed: kills, freezes, restarts and a full queue server while tasks are asked for.

Nobody asks again for what was answered, so what was promised must be kept.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable

from backend.devtools.soak.annotators import Annotators, Verdict
from backend.devtools.soak.faults import BATCH_S, GIVE_UP_S, fill_queue
from backend.devtools.soak.harness import ServiceHarness

WORKERS = 2
# Tasks asked for at once, and the longest pause between two faults in s.
TASKS = 24
LONGEST_PAUSE_S = 4.0


def kill_worker(harness: ServiceHarness, _: random.Random) -> None:
    """kill -9; started again, as a supervisor does."""
    worker = harness.workers.pop(0)
    worker.kill()
    worker.wait()
    harness.start_workers(1, seconds=BATCH_S)


def freeze_worker(harness: ServiceHarness, chance: random.Random) -> None:
    """Sometimes for so long that it is thought dead."""
    worker = chance.choice(harness.workers)
    worker.send_signal(signal.SIGSTOP)
    time.sleep(chance.uniform(0.5, 8.0))
    worker.send_signal(signal.SIGCONT)


def restart_queue(harness: ServiceHarness, chance: random.Random) -> None:
    """kill -9 of the queue server, which reads its log when it starts again."""
    if harness.queue:
        harness.queue.kill()
        harness.queue.wait()
    time.sleep(chance.uniform(0.0, 3.0))
    harness.start_queue()


def restart_api(harness: ServiceHarness, _: random.Random) -> None:
    """kill -9 of the API with requests in flight."""
    if harness.api:
        harness.api.kill()
        harness.api.wait()
    harness.start_api()


def fill(harness: ServiceHarness, chance: random.Random) -> None:
    """The queue server refuses writes for a while."""
    fill_queue(harness, chance.uniform(0.5, 4.0))


ACTIONS: tuple[Callable[[ServiceHarness, random.Random], None], ...] = (
    kill_worker,
    freeze_worker,
    restart_queue,
    restart_api,
    fill,
)


def run_random(seconds: float, seed: int) -> Verdict:
    """Break something again and again for `seconds`, then wait until every task is stored or has a reason."""
    chance = random.Random(seed)
    faults: Counter[str] = Counter()
    verdicts: list[Verdict] = []
    begun = time.monotonic()
    # A task is innocent of what is done to its workers here: it must not be parked however often they are killed.
    with ServiceHarness(max_attempts="1000") as harness:
        harness.start_workers(WORKERS, seconds=BATCH_S)
        harness.set_up_project()
        groups: list[Annotators] = []
        while time.monotonic() - begun < seconds:
            groups.append(Annotators(harness, 1 + len(groups) * TASKS, TASKS, asks_again=False).start())
            time.sleep(chance.uniform(0.0, LONGEST_PAUSE_S))
            action = chance.choice(ACTIONS)
            faults[action.__name__] += 1
            action(harness, chance)
        verdicts = [group.verdict("random", GIVE_UP_S) for group in groups]
    return Verdict(
        f"random {seed}",
        tasks=sum(verdict.tasks for verdict in verdicts),
        stored_once=sum(verdict.stored_once for verdict in verdicts),
        failed={task: reason for verdict in verdicts for task, reason in verdict.failed.items()},
        lost=[task for verdict in verdicts for task in verdict.lost],
        doubled=[task for verdict in verdicts for task in verdict.doubled],
        seconds=round(time.monotonic() - begun, 1),
        notes=dict(faults),
    )
