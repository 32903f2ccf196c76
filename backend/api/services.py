"""What one API process holds: its settings, one connection pool, and the services that share it."""

from __future__ import annotations

from dataclasses import dataclass

from redis import Redis

from backend.api.metrics import Metrics
from backend.predictions.projects import Projects
from backend.predictions.service import Predictions
from backend.queue.connection import web_connection
from backend.queue.job_queue import JobQueue
from backend.settings import Settings
from model.decoding_memory import MemoryBudget


@dataclass(frozen=True)
class Services:
    settings: Settings
    connection: Redis
    predictions: Predictions
    # For webhooks alone: an annotator's submit waits for them.
    hasty_projects: Projects
    metrics: Metrics
    # Of what requests at hand have asked.
    memory: MemoryBudget

    @property
    def queue(self) -> JobQueue:
        return self.predictions.queue

    def close(self) -> None:
        """Close all connections; a process that ends needs none of this, one that goes on does."""
        self.queue.news.close()
        self.predictions.promises.close()
        for connection in (self.connection, self.hasty_projects.connection):
            connection.connection_pool.disconnect()


def make_services(settings: Settings) -> Services:
    """Connects lazily: the API starts, and says so at /ready, while the queue server is still down."""
    connection = web_connection(settings)
    predictions = Predictions(connection, settings)
    hasty = Projects(web_connection(settings, settings.redis_webhook_timeout_s))
    memory = MemoryBudget(int(settings.requests_memory_mib * 2**20))
    return Services(settings, connection, predictions, hasty, Metrics(predictions.queue), memory)
