"""What one API process holds: its settings, one connection pool, and the services that share it."""

from __future__ import annotations

from dataclasses import dataclass

from redis import Redis

from backend.connection import web_connection
from backend.jobs import JobQueue
from backend.metrics import Metrics
from backend.predictions import Predictions
from backend.projects import Projects
from backend.settings import Settings


@dataclass(frozen=True)
class Service:
    settings: Settings
    connection: Redis
    predictions: Predictions
    # For webhooks alone: an annotator's submit waits for them.
    hasty_projects: Projects
    metrics: Metrics

    @property
    def queue(self) -> JobQueue:
        return self.predictions.queue

    def close(self) -> None:
        """Close all connections; a process that ends needs none of this, one that goes on does."""
        self.queue.news.close()
        for connection in (self.connection, self.hasty_projects.connection):
            connection.connection_pool.disconnect()


def make_service(settings: Settings) -> Service:
    """Connects lazily: the API starts, and says so at /ready, while the queue server is still down."""
    connection = web_connection(settings)
    predictions = Predictions(connection, settings)
    hasty = Projects(web_connection(settings, settings.redis_webhook_timeout_s))
    return Service(settings, connection, predictions, hasty, Metrics(predictions.queue))
