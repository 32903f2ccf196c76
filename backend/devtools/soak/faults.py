"""The faults: each has two living workers and a project, breaks something while tasks are asked for, mends it."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backend.devtools.soak.annotators import Annotators, Verdict
from backend.devtools.soak.harness import SoakHarness, until
from backend.queue.keys import DEFERRED, RUNNING

GIVE_UP_S = 300.0
CRASH_WIDTH_PX = 48
BATCH_S = 0.4
# Longer than the stage's `worker_lost_s`.
FROZEN_S = 8.0
FULL_S = 4.0
# Of a batch that is never ready within the stage's deadline of 4 s, however few tasks there are.
LATE_S = 5.0
Fault = Callable[[SoakHarness, Annotators], Verdict]
FAULTS: dict[str, Fault] = {}


def fault(function: Fault) -> Fault:
    FAULTS[function.__name__.replace("_", "-")] = function
    return function


def _begun(stage: SoakHarness, asked: Annotators) -> None:
    """Tasks are asked for, and some are being predicted."""
    asked.start()

    def is_running() -> bool:
        with stage.connection() as connection:
            return any(connection.scan_iter(f"{RUNNING}*"))

    until(is_running, "a running batch", 60)


def _verdict(function: Fault, asked: Annotators) -> Verdict:
    return asked.verdict(function.__name__.replace("_", "-"), GIVE_UP_S)


@fault
def no_fault(stage: SoakHarness, asked: Annotators) -> Verdict:
    """Nothing breaks: what the others are compared with."""
    _begun(stage, asked)
    return _verdict(no_fault, asked)


@fault
def worker_killed(stage: SoakHarness, asked: Annotators) -> Verdict:
    """kill -9 of a worker mid-batch; the other one goes on."""
    _begun(stage, asked)
    stage.workers[0].kill()
    stage.workers.pop(0).wait()
    return _verdict(worker_killed, asked)


@fault
def worker_terminated(stage: SoakHarness, asked: Annotators) -> Verdict:
    """SIGTERM: the batch at hand is finished within the grace time, with exit code 0."""
    _begun(stage, asked)
    process = stage.workers.pop(0)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code = process.wait(60)
    verdict = _verdict(worker_terminated, asked)
    verdict.notes |= {"exit code": code, "drained in s": round(time.monotonic() - begun, 1)}
    return verdict


@fault
def api_killed(stage: SoakHarness, asked: Annotators) -> Verdict:
    """kill -9 of the API with requests in flight; then it is started again."""
    _begun(stage, asked)
    if stage.api:
        stage.api.kill()
        stage.api.wait()
    stage.start_api()
    return _verdict(api_killed, asked)


@fault
def queue_restarted(stage: SoakHarness, asked: Annotators) -> Verdict:
    """kill -9 of the queue server, which forgets everything; two seconds later it is back."""
    _begun(stage, asked)
    if stage.queue:
        stage.queue.kill()
        stage.queue.wait()
    time.sleep(2)
    stage.start_queue()
    stage.set_up_project()
    return _verdict(queue_restarted, asked)


@fault
def worker_frozen(stage: SoakHarness, asked: Annotators) -> Verdict:
    """A worker stands still for longer than it takes to be thought dead, and goes on with what others have taken."""
    _begun(stage, asked)
    stage.workers[0].send_signal(signal.SIGSTOP)
    time.sleep(FROZEN_S)
    stage.workers[0].send_signal(signal.SIGCONT)
    return _verdict(worker_frozen, asked)


@fault
def queue_full(stage: SoakHarness, asked: Annotators) -> Verdict:
    """The queue server refuses writes for some seconds."""
    _begun(stage, asked)
    fill_queue(stage, FULL_S)
    return _verdict(queue_full, asked)


def fill_queue(stage: SoakHarness, seconds: float) -> None:
    """Leave the queue server without memory for a while."""
    with stage.connection() as connection:
        limit = connection.config_get("maxmemory")["maxmemory"]
        connection.config_set("maxmemory", "1")
        try:
            time.sleep(seconds)
        finally:
            connection.config_set("maxmemory", limit)


@fault
def queue_flushed(stage: SoakHarness, asked: Annotators) -> Verdict:
    """Somebody empties the queue server, and Label Studio's next health round sends /setup."""
    _begun(stage, asked)
    with stage.connection() as connection:
        connection.flushall()
    stage.set_up_project()
    return _verdict(queue_flushed, asked)


@fault
def label_studio_down(stage: SoakHarness, asked: Annotators) -> Verdict:
    """Label Studio is away for some seconds while late predictions are pushed; the next push is stored, then "504"."""
    stage.end_workers()
    stage.start_workers(2, seconds=LATE_S)
    _begun(stage, asked)

    def is_deferred() -> bool:
        with stage.connection() as connection:
            return bool(connection.hlen(DEFERRED))

    until(is_deferred, "a request that missed its deadline", 60)
    stage.label_studio.forgets_to_answer = 1
    stage.label_studio.down()
    time.sleep(4)
    stage.label_studio.up()
    return _verdict(label_studio_down, asked)


@fault
def crashing_task(stage: SoakHarness, asked: Annotators) -> Verdict:
    """One task kills every worker that takes it: parked with a reason after two, all others are predicted."""
    stage.end_workers()
    killer = asked.ids[len(asked.ids) // 2]
    asked.widths[killer] = CRASH_WIDTH_PX
    with _kept_alive(stage):
        verdict = _verdict(crashing_task, asked.start())
    verdict.notes["reason"] = asked.failed.get(killer, "")
    if killer not in asked.failed:
        verdict.lost.append(killer)
    return verdict


@contextmanager
def _kept_alive(stage: SoakHarness) -> Iterator[None]:
    """Restarts workers that die, as the supervisor or Kubernetes would."""
    stop = threading.Event()

    def restart() -> None:
        while not stop.wait(0.2):
            stage.workers = [worker for worker in stage.workers if worker.poll() is None]
            if len(stage.workers) < 2:
                stage.start_workers(1, seconds=BATCH_S, crash_width=CRASH_WIDTH_PX)

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)


@fault
def disk_full(stage: SoakHarness, asked: Annotators) -> Verdict:
    """Workers cannot write a single byte to any file: their image cache stays empty, predictions go on."""
    stage.end_workers()
    stage.start_workers(2, seconds=BATCH_S, disk_full=True)
    return _verdict(disk_full, asked.start())


@fault
def clock_jump(stage: SoakHarness, asked: Annotators) -> Verdict:
    """One worker's clock is a day ahead and the other's two hours behind the API's."""
    stage.end_workers()
    stage.start_workers(1, seconds=BATCH_S, clock_s=86_400)
    stage.start_workers(1, seconds=BATCH_S, clock_s=-7_200)
    return _verdict(clock_jump, asked.start())


@fault
def slow_client(stage: SoakHarness, asked: Annotators) -> Verdict:
    """Twenty clients send a request a byte at a time; others are answered meanwhile."""
    sockets = [socket.create_connection((stage.hosts.api, stage.port), timeout=10) for _ in range(20)]
    try:
        for each in sockets:
            each.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n")
        asked.start()
        begun = time.monotonic()
        health = stage.get("/health")
        health_s = time.monotonic() - begun
        for each in sockets:
            each.sendall(b"X")
        verdict = _verdict(slow_client, asked)
    finally:
        for each in sockets:
            each.close()
    verdict.notes |= {"health": bool(health), "health in s": round(health_s, 3)}
    return verdict
