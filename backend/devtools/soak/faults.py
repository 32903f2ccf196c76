"""The faults: each has two living workers and a project, breaks something while tasks are asked for, mends it."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from backend.devtools.soak.annotators import SETTLE_S, Annotators, Verdict
from backend.devtools.soak.harness import ServiceHarness
from backend.processes.waiting import wait_until
from backend.queue.keys import DEFERRED, RUNNING

GIVE_UP_S = 300.0
CRASH_WIDTH_PX = 48
BATCH_S = 0.4
# Longer than the harness's `worker_lost_s`.
FROZEN_S = 8.0
FULL_S = 4.0
# Of a batch that is never ready within the harness's deadline of 4 s, however few tasks there are.
LATE_S = 5.0
Fault = Callable[[ServiceHarness, Annotators], Verdict]
FAULTS: dict[str, Fault] = {}


def fault(function: Callable[[ServiceHarness, Annotators], dict[str, Any] | None]) -> None:
    """Register what breaks and mends something, and perhaps returns notes; the verdict follows when all have ended."""
    name = function.__name__.replace("_", "-")

    def run(harness: ServiceHarness, annotators: Annotators) -> Verdict:
        notes = function(harness, annotators)
        annotators.wait(GIVE_UP_S)
        time.sleep(SETTLE_S)
        verdict = annotators.verdict(name)
        verdict.notes |= notes or {}
        return verdict

    FAULTS[name] = run


def _begun(harness: ServiceHarness, annotators: Annotators) -> None:
    """Tasks are asked for, and some are being predicted."""
    annotators.start()

    def is_running() -> bool:
        with harness.connection() as connection:
            return any(connection.scan_iter(f"{RUNNING}*"))

    wait_until(is_running, "A running batch", 60)


@fault
def no_fault(harness: ServiceHarness, annotators: Annotators) -> None:
    """Nothing breaks: what the others are compared with."""
    _begun(harness, annotators)


@fault
def worker_killed(harness: ServiceHarness, annotators: Annotators) -> None:
    """kill -9 of a worker mid-batch; the other one goes on."""
    _begun(harness, annotators)
    harness.workers[0].kill()
    harness.workers.pop(0).wait()


@fault
def worker_terminated(harness: ServiceHarness, annotators: Annotators) -> dict[str, Any]:
    """SIGTERM: the batch at hand is finished within the grace time, with exit code 0."""
    _begun(harness, annotators)
    process = harness.workers.pop(0)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    return {"exit code": code, "drained in s": round(time.monotonic() - begun, 1)}


@fault
def api_killed(harness: ServiceHarness, annotators: Annotators) -> None:
    """kill -9 of the API with requests in flight; then it is started again."""
    _begun(harness, annotators)
    harness.end_api()
    harness.start_api()


@fault
def queue_restarted(harness: ServiceHarness, annotators: Annotators) -> None:
    """kill -9 of the queue server; two seconds later it is back with its data."""
    _begun(harness, annotators)
    harness.end_queue()
    time.sleep(2)
    harness.start_queue()


@fault
def queue_forgotten(harness: ServiceHarness, annotators: Annotators) -> None:
    """kill -9 of the queue server, which forgets everything; nobody asks again for what was answered."""
    annotators.asks_again = False
    _begun(harness, annotators)
    harness.end_queue(forgets=True)
    time.sleep(2)
    harness.start_queue()


@fault
def all_forgotten(harness: ServiceHarness, annotators: Annotators) -> None:
    """kill -9 of API and queue server, which forgets everything; nobody asks again for what was answered."""
    annotators.asks_again = False
    harness.end_workers()
    harness.start_workers(2, seconds=LATE_S)
    _begun(harness, annotators)
    wait_until(lambda: len(annotators.answered) > len(annotators.ids) // 3, "Answers", 60)
    harness.end_api()
    harness.end_queue(forgets=True)
    harness.start_queue()
    harness.start_api()


@fault
def worker_frozen(harness: ServiceHarness, annotators: Annotators) -> None:
    """A worker stands still for longer than it takes to be thought dead, and goes on with what others have taken."""
    _begun(harness, annotators)
    harness.workers[0].send_signal(signal.SIGSTOP)
    time.sleep(FROZEN_S)
    harness.workers[0].send_signal(signal.SIGCONT)


@fault
def queue_full(harness: ServiceHarness, annotators: Annotators) -> None:
    """The queue server refuses writes for some seconds."""
    _begun(harness, annotators)
    fill_queue(harness, FULL_S)


def fill_queue(harness: ServiceHarness, seconds: float) -> None:
    """Leave the queue server without memory for a while."""
    with harness.connection() as connection:
        limit = connection.config_get("maxmemory")["maxmemory"]
        connection.config_set("maxmemory", "1")
        try:
            time.sleep(seconds)
        finally:
            connection.config_set("maxmemory", limit)


@fault
def queue_flushed(harness: ServiceHarness, annotators: Annotators) -> None:
    """Somebody empties the queue server; nobody asks again for what was answered."""
    annotators.asks_again = False
    _begun(harness, annotators)
    with harness.connection() as connection:
        connection.flushall()


@fault
def label_studio_down(harness: ServiceHarness, annotators: Annotators) -> None:
    """Label Studio is away for some seconds while late predictions are pushed; the next push is stored, then "504"."""
    harness.end_workers()
    harness.start_workers(2, seconds=LATE_S)
    _begun(harness, annotators)

    def is_deferred() -> bool:
        with harness.connection() as connection:
            return bool(connection.hlen(DEFERRED))

    wait_until(is_deferred, "A request that missed its deadline", 60)
    harness.label_studio.forgets_to_answer = 1
    harness.label_studio.down()
    time.sleep(4)
    harness.label_studio.up()


@fault
def crashing_task(harness: ServiceHarness, annotators: Annotators) -> dict[str, Any]:
    """One task kills every worker that takes it: parked with a reason after two, all others are predicted."""
    harness.end_workers()
    killer = annotators.ids[len(annotators.ids) // 2]
    annotators.widths[killer] = CRASH_WIDTH_PX
    annotators.must_fail.add(killer)
    with _kept_alive(harness):
        annotators.start().wait(GIVE_UP_S)
    return {"reason": annotators.failed.get(killer, "")}


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


@fault
def disk_full(harness: ServiceHarness, annotators: Annotators) -> None:
    """Workers cannot write a single byte to any file: their image cache stays empty, predictions go on."""
    harness.end_workers()
    harness.start_workers(2, seconds=BATCH_S, disk_full=True)
    annotators.start()


@fault
def clock_jump(harness: ServiceHarness, annotators: Annotators) -> None:
    """One worker's clock is a day ahead and the other's two hours behind the API's."""
    harness.end_workers()
    harness.start_workers(1, seconds=BATCH_S, clock_s=86_400)
    harness.start_workers(1, seconds=BATCH_S, clock_s=-7_200)
    annotators.start()


@fault
def slow_client(harness: ServiceHarness, annotators: Annotators) -> dict[str, Any]:
    """Twenty clients send a request a byte at a time; others are answered meanwhile."""
    sockets = [socket.create_connection((harness.hosts.api, harness.port), timeout=10) for _ in range(20)]
    try:
        for each in sockets:
            each.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n")
        annotators.start()
        begun = time.monotonic()
        health = harness.get("/health")
        health_s = time.monotonic() - begun
        for each in sockets:
            each.sendall(b"X")
        annotators.wait(GIVE_UP_S)
    finally:
        for each in sockets:
            each.close()
    return {"health": bool(health), "health in s": round(health_s, 3)}
