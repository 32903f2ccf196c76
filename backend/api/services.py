"""Objects of one API process: its settings, connections, services, and the figures that Prometheus asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flask import current_app
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from redis import Redis

from backend.predictions.projects import Projects
from backend.predictions.service import Predictions
from backend.queue.connection import text, web_connection
from backend.queue.delivery import DeliveryClaims
from backend.queue.job_queue import JobQueue
from backend.queue.keys import STATS
from backend.queue.recovery import living_workers
from backend.settings import Settings
from model.images import MemoryBudget

# Where a batch's time goes; workers add to `stage_<name>` in Redis.
STAGES = ("images", "model", "regions")
BUCKETS_S = (0.005, 0.02, 0.1, 0.3, 1, 3, 10, 30, 80, 100)
# Counters kept in Redis by whoever does the work, so that every API replica reports the same.
COUNTERS = {
    "tasks_done": "Tasks predicted",
    "tasks_failed": "Tasks that failed",
    "tasks_parked": "Tasks given up after killing their worker",
    "tasks_dropped": "Tasks dropped because nobody waited for them any more",
    "batches": "Batches run",
    "batch_tasks": "Tasks in those batches",
    "instances": "Objects found",
    "seconds": "Seconds that tasks spent on workers",
    "pushed": "Deferred predictions pushed into Label Studio",
    "push_failures": "Failed pushes",
}


class Metrics:
    """One registry an app; `request_seconds` is filled by the app, the rest is read from Redis when scraped."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self.registry = CollectorRegistry()
        self.request_seconds = Histogram(
            "transfiner_request_seconds",
            "Time to answer",
            ("endpoint", "status"),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """No metrics: registering must not need Redis."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        connection: Redis = self.queue.connection
        counts = {text(name): float(value) for name, value in connection.hgetall(STATS).items()}
        for name, meaning in COUNTERS.items():
            yield CounterMetricFamily(f"transfiner_{name}", meaning, value=counts.get(name, 0.0))
        depth = GaugeMetricFamily("transfiner_queue_depth", "Waiting tasks", labels=("lane",))
        for lane, waiting in self.queue.depth().items():
            depth.add_metric((lane,), waiting)
        yield depth
        yield GaugeMetricFamily(
            "transfiner_deferred", "Predictions waiting to be pushed", DeliveryClaims(connection).count_deferred()
        )
        workers = living_workers(connection)
        yield GaugeMetricFamily("transfiner_workers", "Living workers", len(workers))
        stages = CounterMetricFamily("transfiner_stage_seconds", "Where batches' time goes", labels=("stage",))
        for stage in STAGES:
            stages.add_metric((stage,), counts.get(f"stage_{stage}", 0.0))
        yield stages
        yield from _of_workers(workers)


def _of_workers(workers: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    """Memory of each worker, of its GPU, and of each model that it keeps loaded."""
    memory = GaugeMetricFamily("transfiner_worker_memory_bytes", "Resident memory", labels=("worker", "version"))
    gpu = GaugeMetricFamily("transfiner_worker_gpu_memory_bytes", "GPU memory held", labels=("worker",))
    models = GaugeMetricFamily(
        "transfiner_model_weights_bytes", "Weights of a warm model", labels=("worker", "version", "device")
    )
    for name, facts in workers.items():
        memory.add_metric((name, str(facts.get("version", ""))), float(facts.get("memory_mib", 0)) * 2**20)
        gpu.add_metric((name,), float(facts.get("gpu_memory_mib", 0)) * 2**20)
        for model in facts.get("models", ()):
            models.add_metric((name, model["version"], model["device"]), float(model["mib"]) * 2**20)
    yield from (memory, gpu, models)


@dataclass(frozen=True)
class Services:
    settings: Settings
    connection: Redis
    predictions: Predictions
    # For webhooks only, with a short timeout: an annotator's submit waits for them.
    webhook_projects: Projects
    metrics: Metrics
    # Shared by the bodies of all current requests.
    memory: MemoryBudget

    @property
    def queue(self) -> JobQueue:
        return self.predictions.queue

    def close(self) -> None:
        """Close all connections; only needed where the process goes on."""
        self.queue.news.close()
        self.predictions.promises.close()
        for connection in (self.connection, self.webhook_projects.connection):
            connection.connection_pool.disconnect()


def make_services(settings: Settings) -> Services:
    """Build the services; they connect lazily, so the API starts while the queue server is down (/ready says so)."""
    connection = web_connection(settings)
    predictions = Predictions(connection, settings)
    webhook_projects = Projects(web_connection(settings, settings.redis_webhook_timeout_s))
    memory = MemoryBudget(int(settings.requests_memory_mib * 2**20))
    return Services(settings, connection, predictions, webhook_projects, Metrics(predictions.queue), memory)


def services() -> Services:
    """Services of the application that answers the current request."""
    application_services: Services = current_app.extensions["transfiner"]
    return application_services
