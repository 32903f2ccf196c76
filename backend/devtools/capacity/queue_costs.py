"""What HTTP and queue cost by themselves: a worker whose model costs nothing."""

from __future__ import annotations

from collections.abc import Callable

from backend.devtools.capacity.figures import Cost, QueueFigures
from backend.devtools.capacity.service_times import Report, stored_bytes
from backend.devtools.load.measuring import ServedModelRun
from backend.devtools.soak.harness import PROJECT, ServiceHarness
from backend.queue.job_queue import JobQueue, PredictionJob
from backend.settings import load_settings

LABELS = ("thing",)


def queue_figures(
    service: ServedModelRun, tasks: int, singles: int, bytes_finished: float, bytes_waiting: float, tell: Report
) -> QueueFigures:
    """Throughput and processor time with a stub.

    Args:
        service: with a stub; tasks: in one request; singles: requests of one task.
        bytes_finished, bytes_waiting: of a task, measured elsewhere.
    """
    tell(f"the queue's own limit: {tasks} tasks in a request")
    service.ask_chunk(2_000_000, tasks)  # connections, code paths, pictures in memory
    bulk, seconds = _measured(service, tasks, lambda: service.ask_chunk(3_000_000, tasks))
    tell(f"the queue's own limit: {singles} requests of a task")
    single, _ = _measured(service, singles, lambda: _one_by_one(service, singles))
    return QueueFigures(
        tasks=tasks,
        tasks_a_second=round(tasks / seconds, 1),
        bulk=bulk,
        single=single,
        bytes_waiting=bytes_waiting,
        bytes_finished=bytes_finished,
    )


def _one_by_one(service: ServedModelRun, count: int) -> None:
    """As when annotators open tasks: Label Studio asks for health and setup before each prediction."""
    for number in range(count):
        service.stage.get("/health")
        service.stage.set_up_project(LABELS)
        service.ask_chunk(4_000_000 + number, 1)


def _measured(service: ServedModelRun, tasks: int, act: Callable[[], object]) -> tuple[Cost, float]:
    """Processor time a task, and seconds of all."""
    _, used_s, seconds = service.measured(act)
    return Cost(**{name.replace(" ", "_"): round(1000 * s / tasks, 3) for name, s in used_s.items()}), seconds


def bytes_of_waiting(label_config: str, count: int) -> float:
    """That a task takes in the queue server while nobody has taken it."""
    stage = ServiceHarness()
    try:
        stage.start_queue()
        with stage.connection() as connection:
            before = stored_bytes(connection)
            JobQueue(connection, load_settings()).submit([_job(number, label_config) for number in range(count)])
            return round((stored_bytes(connection) - before) / count, 1)
    finally:
        stage.__exit__()


def _job(number: int, label_config: str) -> PredictionJob:
    address = f"http://127.0.0.1:8080/data/upload/7/{number}.png"
    return PredictionJob(PROJECT, {"id": number, "data": {"image": address}}, address, label_config, "waiting-1")
